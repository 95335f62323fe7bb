"""Rollout workers that are wrong in one way each. The canary must catch every one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
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

    def _tensors(self, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        StaleTensor.first = weights[self.name].clone() if StaleTensor.first is None else StaleTensor.first
        yield from {**weights, self.name: StaleTensor.first}.items()


class DroppedTensor(WeightReceiver):
    """One tensor is not loaded."""

    def _tensors(self, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        yield from ((name, tensor) for name, tensor in weights.items() if name != "model.norm.weight")


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
