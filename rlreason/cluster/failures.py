"""What Ray's errors mean for a run: an actor that is lost and can be replaced, or a Ray that is of no more use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Lines of Ray's messages that name the actor in Ray's own numbers, and what else nobody reads.
NOISE = re.compile(
    r"^\s*(class_name|actor_id|pid|name|namespace|ip|repr|task_name|worker_id|node_id)\b.*$", re.MULTILINE
)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
#: Characters of a message.
LENGTH = 300


class RayUnusable(RuntimeError):
    """Ray itself is gone, or has no room for what it is given: another worker would not mend that."""


def said(error: BaseException) -> str:
    """Ray's message in one line. The reason of a death comes last in it."""
    lines = [line.strip() for line in NOISE.sub("", COLOURS.sub("", str(error))).splitlines() if line.strip()]
    if len(lines) > 1 and "creation task" in lines[0]:  # a traceback: what was raised is its last line
        return f"it could not be made: {lines[-1]}"[:LENGTH]
    text = " ".join(" ".join(lines).split())
    text = re.sub(r"^The actor died unexpectedly before finishing this task\. ?", "", text)
    return text[:LENGTH] or type(error).__name__


def full(ray: Any, error: BaseException) -> RayUnusable | None:
    """The end of a run whose deliveries have no room in Ray; None: ``error`` is another."""
    if isinstance(error, (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)):
        return RayUnusable(
            f"Ray has no room for the weights ({said(error)}): start it with a larger --object-store-memory or more "
            'disk, or say sampler.transport = "collective"'
        )
    return None


@contextmanager
def usable(ray: Any) -> Iterator[None]:
    """Around calls that only a Ray that is gone can fail."""
    try:
        yield
    except ray.exceptions.RayError as error:
        raise full(ray, error) or RayUnusable(f"Ray does not answer any more: {said(error)}") from error
    except ConnectionError as error:
        raise RayUnusable(f"Ray does not answer any more: {said(error)}") from error
