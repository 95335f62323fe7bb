"""Log-probabilities of the same tokens under a policy's weights of different versions, dtypes and expert choices.

N = all completion tokens that are scored, completion by completion; L = layers with experts, K = experts per token.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlreason.objective.batch import Batch
from rlreason.policy.batch import make_batches, rollout_sample
from rlreason.policy.logprobs import takes_packed
from rlreason.policy.model import cast_parameters
from rlreason.routing import FREE, RoutedPass, Routers, expert_count, find_routers
from rlreason.trainer.forward import loss_logprobs
from rlreason.types import Completion
from rlreason.wide_routers import narrow_routers, wide_names


class WeightHistory:
    """The weights of the last ``count`` versions, on the CPU."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: OrderedDict[int, dict[str, Tensor]] = OrderedDict()

    def add(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Keep a copy of ``weights``; the oldest go."""
        self._kept[version] = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}
        while len(self._kept) > self._count:
            self._kept.popitem(last=False)

    def __contains__(self, version: int) -> bool:
        return version in self._kept

    def __getitem__(self, version: int) -> Mapping[str, Tensor]:
        """The weights of ``version``. Raises KeyError where they are gone."""
        return self._kept[version]


@dataclass(frozen=True, slots=True)
class Precision:
    """What a model computes in. Example: ``Precision(torch.bfloat16, float32_routers=True)``."""

    dtype: torch.dtype
    float32_routers: bool = False

    @staticmethod
    def of(model: PreTrainedModel) -> Precision:
        """That of ``model``."""
        return Precision(model.dtype, bool(wide_names(model)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What one model says of the N tokens. ``routing`` (experts of every input token of each batch, uint8) and
    ``experts_NLK``: None where they can't be followed."""

    logprobs_N: Tensor
    routing: tuple[Tensor, ...] | None = None
    #: Experts of the position that predicts each token.
    experts_NLK: Tensor | None = None


class Rescorer:
    """Scores ``completions`` with ``model`` and with copies of it, which are made when first asked for."""

    def __init__(
        self,
        model: PreTrainedModel,
        version: int,
        history: WeightHistory,
        completions: Sequence[Completion],
        micro_batch_tokens: int,
    ) -> None:
        """``version``: that of the weights which ``model`` holds."""
        self._model, self._version, self._history = model, version, history
        rows = [rollout_sample(completion) for completion in completions]
        # Padding is never read: it is masked, and comes after what is.
        self._batches = make_batches(rows, micro_batch_tokens, 0, model.device, packed=takes_packed(model))
        starts = list(accumulate((len(completion.token_ids) for completion in completions), initial=0))
        self.count = starts[-1]
        self._slots = [_slots(batch, starts) for batch in self._batches]
        self._copies: dict[Precision, tuple[PreTrainedModel, Routers | None]] = {}
        self._loaded: dict[Precision, int] = {}
        #: Routed experts of a layer, 0 for a dense model; ``routers`` None where their choice can't be read.
        self.experts = expert_count(model)
        self.routers = self._model_of(version, Precision.of(model))[1]

    def has(self, version: int) -> bool:
        """Whether the weights of ``version`` are at hand."""
        return version == self._version or version in self._history

    def score(
        self, version: int, precision: Precision, temperature: float, routing: Sequence[Tensor] | None = None
    ) -> Scores:
        """The tokens under softmax(logits / temperature) of the weights of ``version`` in ``precision``; with
        ``routing`` (one for each batch) the experts are those. Raises KeyError where the version is gone."""
        model, routers = self._model_of(version, precision)
        logprobs_N = torch.empty(self.count, dtype=torch.float64)
        experts_NLK: Tensor | None = None
        recorded: list[Tensor] = []
        for place, (batch, slots_BT) in enumerate(zip(self._batches, self._slots, strict=True)):
            mask_BT = slots_BT >= 0
            routed = None
            if routers is not None:
                routed = RoutedPass(given_NLK=None if routing is None else routing[place], replay=True)
            logprobs_BT = loss_logprobs(model, batch, temperature, routed)
            logprobs_N[slots_BT[mask_BT]] = logprobs_BT.cpu()[mask_BT].double()
            if routed is None:
                continue
            recorded.append(routed.used_NLK())
            experts_MLK = recorded[-1].cpu()[source_positions(batch).cpu()[mask_BT]]
            if experts_NLK is None:
                experts_NLK = experts_MLK.new_empty((self.count, *experts_MLK.shape[1:]))
            experts_NLK[slots_BT[mask_BT]] = experts_MLK
        return Scores(logprobs_N=logprobs_N, routing=tuple(recorded) or None, experts_NLK=experts_NLK)

    def routing_of(self, experts_NLK: Tensor) -> tuple[Tensor, ...]:
        """The experts of each token, as ``score`` takes them; positions that predict none of them choose freely."""
        found = []
        for batch, slots_BT in zip(self._batches, self._slots, strict=True):
            mask_BT = slots_BT >= 0
            sources = source_positions(batch).cpu()[mask_BT]
            size = (batch.token_ids_BT.numel(), *experts_NLK.shape[1:])
            table_PLK = torch.full(size, FREE, dtype=torch.uint8)
            table_PLK[sources] = experts_NLK[slots_BT[mask_BT]].to(torch.uint8)
            found.append(table_PLK.to(batch.token_ids_BT.device))
        return tuple(found)

    def _model_of(self, version: int, precision: Precision) -> tuple[PreTrainedModel, Routers | None]:
        if version == self._version and precision == Precision.of(self._model):
            return self._model, find_routers(self._model)
        if precision not in self._copies:
            twin = copy.deepcopy(self._model).requires_grad_(requires_grad=False).eval()
            if not precision.float32_routers:
                narrow_routers(twin)
            cast_parameters(twin, precision.dtype)
            self._copies[precision] = (twin, find_routers(twin))
            self._loaded[precision] = self._version
        twin, routers = self._copies[precision]
        if self._loaded[precision] != version:
            twin.load_state_dict(self._model.state_dict() if version == self._version else self._history[version])
            self._loaded[precision] = version
        return twin, routers


def source_positions(batch: Batch) -> Tensor:
    """Place among the batch's input tokens of the one that predicts each target, [B, T]."""
    if batch.packing is not None:
        return batch.packing.source_BT
    return torch.arange(batch.token_ids_BT.numel(), device=batch.token_ids_BT.device).view_as(batch.token_ids_BT)


def _slots(batch: Batch, starts: Sequence[int]) -> Tensor:
    """Place among the N tokens of each target of the batch, [B, T]; −1 where it is none of them."""
    mask_BT = batch.loss_mask_BT.cpu() > 0
    starts_B = torch.tensor([starts[place] for place in batch.places])
    return torch.where(mask_BT, starts_B.unsqueeze(1) + mask_BT.cumsum(dim=1) - 1, -1)
