"""The trainer's boundary: what a stage may ask of whoever holds the policy, in this process or on many ranks.

    trainer.forward_backward(samples, loss)   gradients of one update's samples are added up
    trainer.step(step)                        one optimizer step; the weights are the next version
    trainer.weights()                         what the sampler is to draw with

Samples are plain arrays and losses plain data, so that either can travel to another process.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlreason.objective.batch import Batch, ExpertCounts, LossOutput
from rlreason.objective.distillation.teacher import OutputHead
from rlreason.objective.scores import StepScores
from rlreason.policy.process import return_freed_memory
from rlreason.trainer.counts import Counts
from rlreason.types import TrainingSample

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The models that a loss may run: the one that learns, and frozen teachers where the trainer was given any."""

    policy: PreTrainedModel
    teachers: tuple[PreTrainedModel, ...] = ()
    #: Heads of teachers elsewhere, whose states come with the samples.
    heads: tuple[OutputHead, ...] = ()
    #: Coefficient of the load-balancing loss of experts in supervised losses (``trainer.balance``); 0: without it.
    router_aux_loss: float = 0.0


class Loss(Protocol):
    """A loss as plain data: called with each micro-batch, it gives that micro-batch's share of the step's sum."""

    @property
    def takes_packed(self) -> bool:
        """Whether it may be given packed micro-batches (``objective.batch.Packing``)."""
        ...

    @property
    def scores(self) -> StepScores | None:
        """Scores of the step: the trainer makes its advantages of them, on its own device, before the micro-batches.
        None: what the samples say of advantages stands."""
        ...

    def __call__(self, models: Models, batch: Batch) -> LossOutput:
        """Forward pass and loss of one micro-batch, to call ``backward()`` on."""
        ...


@dataclass(slots=True)
class LossSums:
    """Losses and metrics added up over the micro-batches of a step; read once, so that nothing waits for the device."""

    losses: list[Tensor] = field(default_factory=list)
    sums: dict[str, list[Tensor]] = field(default_factory=dict)
    maxima: dict[str, list[Tensor]] = field(default_factory=dict)
    #: Of a model with experts: where its loss tokens went.
    experts: ExpertCounts | None = None
    #: See ``LossOutput.balance_L2``: squares of the gradients of different tokens' logits, which add up.
    balance_L2: Tensor | None = None

    def add(self, output: LossOutput) -> None:
        """Take in one micro-batch, whose backward pass is over."""
        self.losses.append(output.loss.detach())
        for key, value in output.sums.items():
            self.sums.setdefault(key, []).append(value)
        for key, value in output.maxima.items():
            self.maxima.setdefault(key, []).append(value)
        self._count(output.experts, output.balance_L2)

    def _count(self, experts: ExpertCounts | None, balance_L2: Tensor | None) -> None:
        if experts is not None:
            self.experts = experts if self.experts is None else self.experts + experts
        if balance_L2 is not None:
            self.balance_L2 = balance_L2 if self.balance_L2 is None else self.balance_L2 + balance_L2

    def merge(self, other: LossSums) -> None:
        """Take in another update of the same step."""
        self.losses += other.losses
        for key, values in other.sums.items():
            self.sums.setdefault(key, []).extend(values)
        for key, values in other.maxima.items():
            self.maxima.setdefault(key, []).extend(values)
        self._count(other.experts, other.balance_L2)

    def read(self, denominator: float) -> dict[str, float]:
        """The summed loss, sums divided by ``denominator`` (loss tokens), and maxima, as numbers: read at once, so that
        the device is waited for once."""
        found = {"loss": torch.stack(self.losses).sum()} if self.losses else {}
        found |= {key: torch.stack(values).sum() for key, values in self.sums.items()}
        found |= {key: torch.stack(values).max() for key, values in self.maxima.items()}
        if not found:
            return {}
        numbers = torch.stack([value.double() for value in found.values()]).tolist()
        scalars = dict(zip(found, numbers, strict=True))
        return {key: value / denominator if key in self.sums else value for key, value in scalars.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """What a pass without gradients says of one sample of T tokens."""

    #: float32 [T], as ``Trainer.logprobs``.
    logprobs: npt.NDArray[np.float32]
    #: uint8 [T, L, K], as ``TrainingSample.routed_experts``.
    experts: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """What one optimizer step did. Example: ``StepStats(grad_norm=0.8, learning_rate=1e-6, moved=0.99)``."""

    #: Before clipping; not finite where the step was skipped.
    grad_norm: float
    learning_rate: float
    #: Share of the weights that the step changed, of about 8,000 spread over all parameters.
    moved: float
    #: The gradient was not finite: nothing was changed.
    skipped: bool = False

    def scalars(self) -> dict[str, float]:
        """As metrics."""
        return {
            "grad_norm": self.grad_norm,
            "lr": self.learning_rate,
            "update/moved": self.moved,
            "update/skipped": float(self.skipped),
        }


class Trainer(Protocol):
    """Owns a policy that learns, its optimizer, and the frozen models that its loss looks at.

    Parameters, moments and accumulated gradients are float32; the compute dtype is ``dtype``. Its public face as a
    model to draw with (``architecture``, ``dtype``, ``vocabulary``, ``tokenizer``, ``stop_ids``, ``weights``,
    ``expectations``) is what ``rlreason.sampler`` asks for.
    """

    @property
    def architecture(self) -> Mapping[str, object]:
        """The model's config as a dict, with ``architectures`` and ``model_type``."""
        ...

    @property
    def dtype(self) -> str:
        """What the model computes in: "float32" or "bfloat16"."""
        ...

    @property
    def router_dtype(self) -> str:
        """What the routers' weights come in: ``dtype``, or "float32" where a sampler's are to compute in it, too."""
        ...

    @property
    def vocabulary(self) -> int:
        """Rows of the head."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that the model was trained with."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a sample, the end of turn first."""
        ...

    @property
    def parameters(self) -> tuple[int, int]:
        """(all parameters, parameters active for one token)."""
        ...

    @property
    def counts(self) -> Counts:
        """What it has computed since it was opened."""
        ...

    @property
    def rounded(self) -> float:
        """Share of the weights that lay between two numbers of the compute dtype before all were rounded to it once;
        0: none were rounded. See ``masters.round_ties``."""
        ...

    def forward_backward(self, samples: Sequence[TrainingSample], loss: Loss) -> LossSums:
        """Add the gradients of ``loss`` over ``samples`` to those accumulated since the last ``step``."""
        ...

    def step(self, step: int) -> StepStats:
        """Change the weights by the accumulated gradients, at the learning rate of ``step`` (from 0), and clear them.

        A non-finite gradient norm changes nothing and is counted. Raises NonFiniteError where that happened too often
        in a row.
        """
        ...

    def logprobs(
        self,
        samples: Sequence[TrainingSample],
        temperature: float = 1.0,
        of: Literal["policy", "reference"] = "policy",
        *,
        replay: bool = False,
    ) -> list[npt.NDArray[np.float32]]:
        """log π of every loss token under softmax(logits / temperature), float32 [T] a sample; 0 where masked.

        ``of``: the weights of now, or those that the trainer began with or renewed its reference from last (where it
        was made with one).
        ``replay``: with the samples' ``routed_experts`` (of the policy; a reference is another model).
        """
        ...

    def renew_reference(self) -> None:
        """From here on the reference is the policy with its weights of now. Of trainers of all weights alone, made with
        a reference; their states hold it from then on."""
        ...

    def routed_logprobs(self, samples: Sequence[TrainingSample], temperature: float = 1.0) -> list[Routed]:
        """``logprobs`` of the weights of now, and the experts that they choose. Raises UsageError of a model whose
        routers can't be followed."""
        ...

    def teach(self, heads: Sequence[OutputHead]) -> None:
        """Take over the heads of teachers elsewhere, in the order in which losses name them; sent once."""
        ...

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """Every tensor of the model in the compute dtype, routers' in ``router_dtype``, by transformers' names: what a
        sampler is to draw with."""
        ...

    def expectations(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
        """log π of the token after each prompt at temperature 1, [V] float32 on the CPU.

        Deliveries are proved with them.
        """
        ...

    def save_state(self, folder: Path) -> None:
        """Write all that ``load_state`` needs to go on as if nothing had happened: weights, moments, counters."""
        ...

    def load_state(self, folder: Path) -> None:
        """Take over what ``save_state`` wrote. Raises UsageError where it is of another model."""
        ...

    def save(self, folder: Path) -> None:
        """Write a plain Hugging Face folder in the checkpoint dtype."""
        ...

    def rest(self) -> None:
        """Give back the memory of accelerators that is held for later: an engine on the same GPU is to wake."""
        ...

    def close(self) -> None:
        """Give back what the trainer holds, such as other processes; it is not used afterwards."""
        ...


def give_back() -> None:
    """Of this process: what allocators keep and nothing uses."""
    gc.collect()
    return_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class NonFiniteError(RuntimeError):
    """Gradients or weights are not finite, and going on would not help."""
