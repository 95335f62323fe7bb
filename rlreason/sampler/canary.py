"""The proof of a delivery: every worker answers as the trainer does, or the run stops and says where not.

Three things are compared after each delivery: the version, a checksum of every tensor as it arrived, and the
log-probabilities of the most likely tokens after fixed prompts, which the worker computes through the same kernels and
caches as its rollouts, and whoever publishes the weights with the model that they are of. One prompt is longer than a
block of the KV cache, so that a cache left over from older weights shows. Where answers differ, a model is built from
the delivered weights, both say what each attention and MLP puts out, and the first that differs is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlreason.delivery.packing import DeliveryError, Manifest, few
from rlreason.sampler.jobs import EngineSpec, ProbeAnswer
from rlreason.sampler.transformers_engine import build, module_outputs
from rlreason.sampler.worker import Receipt

#: Prompt lengths; the last is more than vLLM's block of 128 on a CPU (16 on a GPU), with room for one token.
LENGTHS = (5, 24, 70, 140)
#: Most likely tokens compared after each prompt; vLLM reports no more than 20.
COUNT = 20
#: Largest difference of a log-probability where both sides compute in float32, and the largest mean one in bfloat16,
#: whose rounding alone moves single tokens far (measured: 0.02 dense, 0.1 MoE with random weights).
TOLERANCE_FLOAT32 = 5e-5
TOLERANCE_BFLOAT16 = 0.15
#: A module differs where its outputs do by more than this share of their norm.
MODULE_TOLERANCE_FLOAT32 = 1e-4
MODULE_TOLERANCE_BFLOAT16 = 5e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What the trainer's weights say after each probe, [V] float32 each, for one version."""

    manifest: Manifest
    logprobs_V: tuple[Tensor, ...]


class Canary:
    """Chooses the prompts of the proof and checks the workers' receipts. It holds no model."""

    def __init__(self, vocabulary: int, max_length: int, dtype: str, *, tolerance: float | None = None) -> None:
        """``dtype``: what both sides compute in, such as "float32"; the tolerance follows from it."""
        generator = torch.Generator().manual_seed(0)
        self.prompts: tuple[tuple[int, ...], ...] = tuple(
            tuple(torch.randint(vocabulary, (min(length, max_length - 1),), generator=generator).tolist())
            for length in LENGTHS
        )
        self.count = min(COUNT, vocabulary)
        self._largest = dtype == "float32"
        by_dtype = TOLERANCE_FLOAT32 if self._largest else TOLERANCE_BFLOAT16
        #: Differences up to here are rounding.
        self.tolerance = by_dtype if tolerance is None else tolerance

    def expect(self, manifest: Manifest, logprobs_V: Sequence[Tensor]) -> Expectation:
        """``logprobs_V``: the trainer's after each of ``prompts``, [V] float32. ValueError for another number."""
        if len(logprobs_V) != len(self.prompts):
            raise ValueError(
                f"version {manifest.version} was published with {len(logprobs_V)} expectations for {len(self.prompts)} "
                "probes: give the model's answers to each of the sampler's probes"
            )
        return Expectation(manifest=manifest, logprobs_V=tuple(logprobs_V))

    def check(self, receipt: Receipt, expected: Expectation, sent: Mapping[str, int], worker: int) -> float:
        """The difference of log-probabilities that was found. ``sent``: the checksum of each tensor as it was sent.
        Raises DeliveryError with what is wrong."""
        where = f"delivery of version {expected.manifest.version} to rollout worker {worker}"
        if receipt.version != expected.manifest.version:
            raise DeliveryError(f"{where}: it says that it holds version {receipt.version}")
        names = [entry.name for entry in expected.manifest.entries]
        differ = sorted(name for name in names if name not in sent or receipt.checksums.get(name) != sent[name])
        if differ:
            raise DeliveryError(f"{where}: {len(differ)} of {len(names)} tensors are not what was sent: {few(differ)}")
        difference = self.difference(receipt.answers, expected.logprobs_V)
        if not difference <= self.tolerance:
            raise ProbeError(
                f"{where}: every tensor arrived, but the engine's log-probabilities are {difference:.2g} off the "
                f"trainer's ({'at most' if self._largest else 'in the mean'} {self.tolerance:g} is rounding)"
            )
        return difference

    def difference(self, answers: Sequence[ProbeAnswer], logprobs_V: Sequence[Tensor]) -> float:
        """Of an engine's answers to ``prompts`` from the model's own, [V] each: the largest in float32, the mean in
        bfloat16."""
        differences = torch.cat(
            [
                torch.tensor(answer.logprobs) - wanted_V[list(answer.token_ids)]
                for answer, wanted_V in zip(answers, logprobs_V, strict=True)
            ]
        ).abs()
        return float(differences.max() if self._largest else differences.mean())

    def explain(
        self,
        spec: EngineSpec,
        weights: Mapping[str, Tensor],
        outputs_of: Callable[[tuple[int, ...]], Mapping[str, Tensor]],
    ) -> str:
        """Which module of a worker differs first from a model of ``spec`` with ``weights``, and its tensors."""
        model = build(spec)
        model.load_state_dict(dict(weights), strict=False)
        limit = MODULE_TOLERANCE_FLOAT32 if spec.dtype == "float32" else MODULE_TOLERANCE_BFLOAT16
        prompt = self.prompts[1]
        wanted, found = module_outputs(model, prompt), outputs_of(prompt)
        for name, wanted_TH in wanted.items():
            if name in found:
                apart = float((found[name] - wanted_TH).norm() / wanted_TH.norm().clamp(min=1e-12))
                if not apart <= limit:
                    tensors = [key for key in weights if key.startswith(f"{name}.")]
                    return f"the first module whose output differs is {name} (by {apart:.1%}): {few(tensors)}"
        return (
            "every attention and MLP computes what it should on a fresh prompt: what differs is the final norm, the "
            "head, keys and values that were cached under older weights, or the trainer, whose answers are of other "
            "weights than those it published"
        )


class ProbeError(DeliveryError):
    """The engine does not say what the delivered weights say."""
