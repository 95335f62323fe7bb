"""Logical GPUs: Ray counts them like real ones and asks nothing of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from rlreason.cluster.actor import Where, make_actor
from rlreason.cluster.places import Reservation
from rlreason.config import Recipe, load
from rlreason.config.load import locate

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
#: Hosts that are gone are noticed in seconds.
QUICK = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "health_check_timeout_ms": 1000,
}
SMALL: dict[str, Any] = {"num_cpus": 8, "object_store_memory": 80 << 20}


@contextmanager
def hosts(count: int, gpus: int, **head: Any) -> Iterator[Cluster]:
    """A cluster of so many hosts with so many GPUs each, which this process is in."""
    first = SMALL | {"num_gpus": gpus, "include_dashboard": False, "_system_config": QUICK} | head
    cluster = Cluster(initialize_head=True, head_node_args=first)
    try:
        for _ in range(count - 1):
            cluster.add_node(wait=False, num_gpus=gpus, **SMALL)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def documented(section: str) -> list[str]:
    """The runs that a section of docs/cluster.md shows, as a shell would be given them."""
    text = PAGE.read_text(encoding="utf-8")
    (body,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```\w*\n(.*?)^```", body, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("rlreason run ")]


def recipe_of(line: str) -> Recipe:
    """What the command would run."""
    name, *overrides = shlex.split(line)[2:]
    return load(locate(name), tuple(overrides))


def started(places: Reservation, numbers: Sequence[int] | None = None) -> dict[int, Where]:
    """Where actors of these places come up: started as ranks and engines are, with nothing to do."""

    class Probe:
        pass

    actors = {
        number: make_actor(places, Probe, number, lane="beside", environment={})
        for number in (range(places.need.count) if numbers is None else numbers)
    }
    found = dict(zip(actors, ray.get([actor.where.remote() for actor in actors.values()], timeout=300), strict=True))
    for actor in actors.values():
        ray.kill(actor)
    return found


def cards(found: dict[int, Where]) -> list[tuple[str, str]]:
    """(host, GPU), once for each actor that has it."""
    return [(one.node, gpu) for one in found.values() for gpu in one.gpus]
