"""A rollout worker: an engine, the weights it was given, and what it can say of them. The same class runs inline and as
a Ray actor."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlreason.cluster.actor import check_gpus
from rlreason.cluster.processes import ProcessId, own_process
from rlreason.delivery.adapter import KeptBase
from rlreason.delivery.group import Meeting, joined
from rlreason.delivery.packing import Bytes, Manifest, Receiver, summed
from rlreason.sampler.jobs import Engine, EngineSpec, Job, ProbeAnswer, Progress
from rlreason.sampler.transformers_engine import TransformersEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a worker says after a delivery. ``unloaded``: parameters of its model that no delivered tensor went into."""

    version: int
    checksums: Mapping[str, int]
    unloaded: tuple[str, ...]
    answers: tuple[ProbeAnswer, ...]


def build_engine(spec: EngineSpec) -> Engine:
    """The engine of ``spec``, with random weights."""
    if spec.kind == "vllm":
        from rlreason.sampler.vllm_engine import VllmEngine

        return VllmEngine(spec)
    return TransformersEngine(spec)


class RolloutWorker:
    """Draws completions with the newest weights that were delivered to it."""

    def __init__(self, make_engine: Callable[[EngineSpec], Engine] = build_engine) -> None:
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._receiver = Receiver()
        self._base = KeptBase()

    def build(self, spec: EngineSpec) -> None:
        """Build the engine; one built before is given up first. Raises UsageError where torch does not see the GPU that
        Ray gave this worker."""
        check_gpus()
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            gc.collect()
        self._engine = self._make_engine(spec)
        self._receiver = Receiver()
        # Engines of several GPUs are other processes, which are handed what lies in host memory.
        here = torch.cuda.is_available() and spec.vllm.tensor_parallel == 1
        self._base = KeptBase("cuda" if here else "cpu")

    def process_id(self) -> ProcessId:
        """Of where it runs; also shows that it is up."""
        return own_process()

    def deliver(
        self,
        manifest: Manifest,
        probes: Sequence[tuple[int, ...]],
        count: int,
        keep: bool,
        *buckets: Bytes,
    ) -> Receipt:
        """Take over weights that lie in ``buckets`` and answer the probes with them. ``keep``: deltas may follow."""
        received, unloaded = self._load(manifest, buckets, keep=keep)
        return self._receipt(manifest, received, unloaded, probes, count)

    def receive(
        self,
        manifest: Manifest,
        probes: Sequence[tuple[int, ...]],
        count: int,
        keep: bool,
        meeting: Meeting,
        member: int,
    ) -> Receipt:
        """``deliver`` with buckets that are broadcast to a group, in which this worker is ``member`` (from 1): each is
        loaded while the next is under way.

        Raises BrokenGroup where the group ends before the last; the engine then holds no version.
        """
        with joined(meeting, member) as group:
            received, unloaded = self._load(manifest, group.buckets(manifest.sizes), keep=keep)
        return self._receipt(manifest, received, unloaded, probes, count)

    def _load(
        self, manifest: Manifest, buckets: Iterable[Bytes], *, keep: bool
    ) -> tuple[dict[str, int], tuple[str, ...]]:
        """(checksum of each tensor as it arrived, parameters that none went into)."""
        received: dict[str, int] = {}
        weights = summed(self._receiver.stream(manifest, buckets, keep=keep), received)
        if manifest.factors:
            weights = self._merged(manifest, weights)
        else:
            self._base.drop()
        unloaded = self._built.load(weights, manifest.version)
        for _ in weights:  # what the engine did not ask for; others wait for it to be taken
            pass
        return received, unloaded

    def _merged(self, manifest: Manifest, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        return self._base.merged(manifest, weights)

    def _receipt(
        self,
        manifest: Manifest,
        received: Mapping[str, int],
        unloaded: tuple[str, ...],
        probes: Sequence[tuple[int, ...]],
        count: int,
    ) -> Receipt:
        answers = self._built.probe(probes, count) if probes else ()
        return Receipt(version=manifest.version, checksums=received, unloaded=unloaded, answers=answers)

    def advance(self, jobs: Sequence[Job], seconds: float, steps: int | None = None) -> Progress:
        """Take on ``jobs`` and draw for about ``seconds``, or for exactly ``steps`` engine steps."""
        self._built.submit(jobs)
        return self._built.advance(seconds, steps)

    def module_outputs(self, prompt_ids: tuple[int, ...]) -> Mapping[str, Tensor]:
        """For the report of a failed delivery; drops the jobs under way."""
        self._built.abort()
        return self._built.module_outputs(prompt_ids)

    def abort(self) -> None:
        """Forget the jobs under way."""
        self._built.abort()

    def interrupt(self) -> None:
        """From another thread of this process: see ``Engine.interrupt``."""
        if self._engine is not None:
            self._engine.interrupt()

    def sleep(self) -> None:
        """Give the accelerator's memory to the trainer."""
        self._built.sleep()

    def wake(self) -> None:
        """Take it back; weights must be delivered before anything is drawn."""
        self._built.wake()

    @property
    def _built(self) -> Engine:
        assert self._engine is not None, "build comes first"
        return self._engine
