"""Rollout workers that are wrong in one way each. The canary must catch every one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from rlreason.sampler.jobs import EngineSpec, Job, Progress
from rlreason.sampler.vllm_engine import VllmEngine
from rlreason.sampler.vllm_extension import WeightReceiver
from rlreason.sampler.worker import Receipt, RolloutWorker

if TYPE_CHECKING:
    from rlreason.arrays import IntArray


class PackedExperts(WeightReceiver):
    """vLLM 0.32's reload as it is: experts are not packed anew for the CPU kernel."""

    def _unpack_experts(self, model: nn.Module) -> None:
        pass


class PackedHead(WeightReceiver):
    """vLLM 0.32's reload as it is: a tied head keeps its packed copy."""

    def _repack_head(self, model: nn.Module) -> None:
        pass


class StaleTensor(WeightReceiver):
    """One tensor keeps its first value, and everyone is told that it was loaded."""

    name = "model.layers.1.self_attn.o_proj.weight"
    first: Tensor | None = None

    def _tensors(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            if name == self.name and StaleTensor.first is None:
                StaleTensor.first = tensor.clone()
            yield name, (StaleTensor.first if name == self.name else tensor)  # type: ignore[misc]


class DroppedTensor(WeightReceiver):
    """One tensor is not loaded."""

    def _tensors(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        yield from ((name, tensor) for name, tensor in weights if name != "model.norm.weight")


class ForgetfulEngine(VllmEngine):
    """Keeps cached keys and values over an update, and does not key them by version."""

    def _forget_caches(self) -> None:
        pass

    def _prompt(self, prompt_ids: Sequence[int] | IntArray) -> dict[str, object]:
        return {"prompt_token_ids": [int(token) for token in prompt_ids]}


class ForgetfulWorker(RolloutWorker):
    """A worker with that engine."""

    def __init__(self) -> None:
        super().__init__(make_engine=_forgetful)


def _forgetful(spec: EngineSpec) -> VllmEngine:
    return ForgetfulEngine(spec)


class BackdatedWorker(RolloutWorker):
    """Says that it holds the version before."""

    def deliver(self, *arguments: object, **named: object) -> Receipt:
        receipt = super().deliver(*arguments, **named)  # type: ignore[arg-type]
        return replace(receipt, version=max(0, receipt.version - 1))


class BitFlippingWorker(RolloutWorker):
    """One bit of a tensor flips on the way."""

    def deliver(self, manifest, probes, count, keep, *buckets):  # type: ignore[no-untyped-def]
        buckets = [bucket.copy() for bucket in buckets]
        entry = next(entry for entry in manifest.entries if entry.name == "model.layers.0.mlp.gate.weight")
        buckets[entry.bucket][entry.offset + 1] ^= 1
        return super().deliver(manifest, probes, count, keep, *buckets)


class DyingWorker(RolloutWorker):
    """Its process ends as soon as it is to draw."""

    def advance(self, jobs: Sequence[Job], seconds: float, steps: int | None = None) -> Progress:
        os._exit(1)


class BackdatedReceiver(RolloutWorker):
    """Says that it holds the version before, of weights that are broadcast."""

    def receive(self, *arguments: object, **named: object) -> Receipt:
        receipt = super().receive(*arguments, **named)  # type: ignore[arg-type]
        return replace(receipt, version=max(0, receipt.version - 1))


class BitFlippingReceiver(RolloutWorker):
    """One bit of a broadcast flips on the way."""

    def _load(self, manifest, buckets, *, keep):  # type: ignore[no-untyped-def]
        def flipped():  # type: ignore[no-untyped-def]
            for at, bucket in enumerate(buckets):
                if at == 0:
                    bucket[1] ^= 1
                yield bucket

        return super()._load(manifest, flipped(), keep=keep)


#: Names a file that holds a signal for the first worker that sees it.
STOP_FILE = "FAULTS_STOP_FILE"


class SelfSignalling(RolloutWorker):
    """Sends itself the signal of the marked file when it has the first bucket and is given the second."""

    def _load(self, manifest, buckets, *, keep):  # type: ignore[no-untyped-def]
        assert len(manifest.sizes) > 2, "it is to be in the middle"

        def watched():  # type: ignore[no-untyped-def]
            for at, bucket in enumerate(buckets):
                mark = os.environ[STOP_FILE]
                if at == 1 and os.path.exists(mark):
                    try:
                        os.rename(mark, taken := f"{mark}.{os.getpid()}")
                    except OSError:  # the other was first
                        pass
                    else:
                        with open(taken, encoding="utf-8") as file:
                            number = int(file.read())
                        os.kill(os.getpid(), number)
                yield bucket

        return super()._load(manifest, watched(), keep=keep)


class StaleAdapter(RolloutWorker):
    """Goes on with the first adapter that it was given, and says that it has the new one."""

    def _merged(self, manifest, weights):  # type: ignore[no-untyped-def]
        def old():  # type: ignore[no-untyped-def]
            for name, tensor in weights:
                of_adapter = name.endswith((":A", ":B"))
                yield name, self.__dict__.setdefault(name, tensor.clone()) if of_adapter else tensor

        return super()._merged(manifest, old())
