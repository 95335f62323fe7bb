"""The proof of a delivery: every worker answers as the trainer's own model does, or the run stops and says where not.

Three things are compared after each delivery: the version, a checksum of every tensor as it arrived, and the
log-probabilities of the most likely tokens after fixed prompts, which the worker computes through the same kernels and
caches as its rollouts. One prompt is longer than a block of the KV cache, so that a cache left over from older weights
shows. Where answers differ, both models say what each attention and MLP puts out, and the first that differs is named.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlreason.sampler.delivery import DeliveryError, Manifest, few
from rlreason.sampler.transformers_engine import module_outputs, next_logprobs
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
MODULE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What the trainer's weights say after each probe, [V] float32 each, for one version."""

    manifest: Manifest
    logprobs_V: tuple[Tensor, ...]


class Canary:
    """Checks the workers' receipts against the trainer's model."""

    def __init__(self, model: PreTrainedModel, max_length: int, *, tolerance: float | None = None) -> None:
        vocabulary = int(model.get_output_embeddings().weight.shape[0])
        generator = torch.Generator().manual_seed(0)
        self._model = model
        self.prompts = tuple(
            tuple(torch.randint(vocabulary, (min(length, max_length - 1),), generator=generator).tolist())
            for length in LENGTHS
        )
        self.count = min(COUNT, vocabulary)
        exact = model.dtype == torch.float32
        self._tolerance = tolerance if tolerance is not None else (TOLERANCE_FLOAT32 if exact else TOLERANCE_BFLOAT16)
        self._largest = exact

    def expect(self, manifest: Manifest) -> Expectation:
        """What the trainer's weights say now; they must be those of the manifest."""
        training = self._model.training
        self._model.eval()
        logprobs = tuple(next_logprobs(self._model, prompt).cpu() for prompt in self.prompts)
        self._model.train(training)
        return Expectation(manifest=manifest, logprobs_V=logprobs)

    def check(self, receipt: Receipt, expected: Expectation, worker: int) -> float:
        """The difference of log-probabilities that was found. Raises DeliveryError with what is wrong."""
        where = f"delivery of version {expected.manifest.version} to rollout worker {worker}"
        if receipt.version != expected.manifest.version:
            raise DeliveryError(f"{where}: it says that it holds version {receipt.version}")
        sent = expected.manifest.checksums
        differ = sorted(name for name in sent if receipt.checksums.get(name) != sent[name])
        if differ:
            raise DeliveryError(f"{where}: {len(differ)} of {len(sent)} tensors are not what was sent: {few(differ)}")
        difference = self._difference(receipt, expected)
        if not difference <= self._tolerance:
            raise ProbeError(
                f"{where}: every tensor arrived, but the engine's log-probabilities are {difference:.2g} off the "
                f"trainer's ({'at most' if self._largest else 'in the mean'} {self._tolerance:g} is rounding)"
            )
        return difference

    def _difference(self, receipt: Receipt, expected: Expectation) -> float:
        differences = torch.cat(
            [
                torch.tensor(opinion.logprobs) - wanted_V[list(opinion.token_ids)]
                for opinion, wanted_V in zip(receipt.opinions, expected.logprobs_V, strict=True)
            ]
        ).abs()
        return float(differences.max() if self._largest else differences.mean())

    def explain(
        self, weights: Mapping[str, Tensor], outputs_of: Callable[[tuple[int, ...]], Mapping[str, Tensor]]
    ) -> str:
        """Which module of a worker differs first from a model with ``weights``, and its tensors."""
        model = copy.deepcopy(self._model).eval()
        model.load_state_dict(dict(weights), strict=False)
        limit = MODULE_TOLERANCE.get(model.dtype, 5e-2)
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
            "head, or keys and values that were cached under older weights"
        )


class ProbeError(DeliveryError):
    """The engine does not say what the delivered weights say."""
