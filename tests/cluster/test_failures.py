"""Every error that Ray has, as a pool is told of it: a worker is replaced, or the run ends with a clear word."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from rlreason.cluster.failures import RayUnusable, said, usable
from rlreason.delivery.group import BrokenGroup
from rlreason.delivery.packing import DeliveryError
from rlreason.errors import UsageError
from rlreason.sampler.handles import WorkerDied, WorkerFailed, _RayCall

ray: Any = pytest.importorskip("ray", reason="Ray is not installed")

#: Ray tells of them in other ways than by raising them of a call's result, or they are the frame of others.
NOT_RAISED = {"RayTaskError", "RayError", "UserCodeException"}
ERRORS = {
    name: kind
    for name, kind in vars(ray.exceptions).items()
    if inspect.isclass(kind) and issubclass(kind, ray.exceptions.RayError) and name not in NOT_RAISED
}
#: Another worker would meet the same.
ENDS = {"ObjectStoreFullError", "OutOfDiskError"}


def made(kind: type) -> Exception:
    """An instance as Ray could raise it, whatever its constructor takes."""
    error: Exception = kind.__new__(kind)
    Exception.__init__(error, f"said by {kind.__name__}")
    kind.__str__ = Exception.__str__  # type: ignore[method-assign, assignment]
    return error


def result_of(error: Exception) -> Any:
    """What a pool is told where ``ray.get`` raises ``error``."""

    def get(_: object) -> None:
        raise error

    return _RayCall(object(), SimpleNamespace(exceptions=ray.exceptions, get=get)).result()


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_every_error_of_ray_is_a_lost_worker_or_the_end(name: str) -> None:
    kind = ERRORS[name]
    text = kind.__str__
    try:
        expected = RayUnusable if issubclass(kind, tuple(ERRORS[one] for one in ENDS)) else WorkerDied
        with pytest.raises(expected, match=f"said by {name}"):
            result_of(made(kind))
        with pytest.raises(RayUnusable, match=f"said by {name}"), usable(ray):
            raise made(kind)
    finally:
        kind.__str__ = text  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("cause", "expected", "match"),
    [
        (UsageError("too small"), UsageError, "^too small$"),
        (DeliveryError("wrong"), DeliveryError, "^wrong$"),
        (BrokenGroup("gone"), BrokenGroup, "^gone$"),
        (ValueError("a bug"), WorkerFailed, "^ValueError: a bug$"),
        (MemoryError("much"), WorkerFailed, "^MemoryError: much$"),
    ],
)
def test_what_a_worker_raised(cause: Exception, expected: type[Exception], match: str) -> None:
    with pytest.raises(expected, match=match):
        result_of(ray.exceptions.RayTaskError("f", "traceback", cause))


def test_an_argument_that_was_lost_is_a_lost_worker() -> None:
    lost = ray.exceptions.ObjectFetchTimedOutError("00" * 28, "", "")
    with pytest.raises(WorkerDied):
        result_of(ray.exceptions.RayTaskError("f", "traceback", lost))


def test_the_reason_is_what_remains_of_a_message() -> None:
    text = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: A\n\tactor_id: 1c24\n\tpid: 29312\n"
        "\tname: run/rollout-worker-11\n\tnamespace: fc8c\n\tip: 192.0.2.2\n"
        "The actor died because its node has died. Node Id: c8a6"
    )
    assert said(RuntimeError(text)) == "The actor died because its node has died. Node Id: c8a6"
    trace = "The actor died because of an error raised in its creation task, ray::A()\n  File x\nValueError: no room"
    assert said(RuntimeError(trace)) == "it could not be made: ValueError: no room"
    assert said(RuntimeError()) == "RuntimeError"
