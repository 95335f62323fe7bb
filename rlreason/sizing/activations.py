"""What a micro-batch keeps for its backward pass, counted by torch itself on tensors without memory.

The layers of an empty model run forward and backward over a packed micro-batch, as the trainer has it, on fake tensors:
shapes are computed and numbers are not, and every storage is counted while somebody holds it. One layer of each kind
and then a second one give what each further layer adds; 61 layers take as long as three.

The fused head decides how many rows it computes by their mask, which fake tensors don't know, so it is a formula.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig, PreTrainedModel

from rlreason.errors import UsageError
from rlreason.objective.batch import Packing
from rlreason.policy.attention import packed_states
from rlreason.policy.batch import pack, supervised_sample
from rlreason.policy.layouts import Call, Layout, causal
from rlreason.policy.logprobs import body_of
from rlreason.policy.lora import LoraOptions, add_adapter
from rlreason.sizing.shape import empty_model, layers_of
from rlreason.trainer.options import checkpoint_activations


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Rows of a micro-batch, all alike: ``rows`` completions, each group of ``group`` behind one prompt."""

    rows: int
    group: int
    prompt: int
    #: Tokens of a completion.
    completion: int

    @property
    def prompts(self) -> int:
        """Prompts, each computed once."""
        return -(-self.rows // self.group)

    @property
    def tokens(self) -> int:
        """Positions that are computed; the last token of a completion predicts nothing."""
        return self.prompts * self.prompt + self.rows * (self.completion - 1)

    @property
    def loss_rows(self) -> int:
        """Tokens that carry loss."""
        return self.rows * self.completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Bytes beside weights, gradients and moments."""

    #: Held between the forward and the backward pass.
    kept: int
    #: At most, while forward and backward passes run; ``kept`` is in it.
    peak: int


def micro_batch(budget: int, prompt: int, completion: int, group: int) -> MicroBatch:
    """The largest one of ``budget`` positions, and one completion at least."""
    whole, rest = divmod(budget, prompt + group * (completion - 1))
    more = max(0, rest - prompt) // max(1, completion - 1)
    rows = max(1, whole * group + min(more, group))
    return MicroBatch(rows=rows, group=group, prompt=prompt, completion=completion)


class CountingError(Exception):
    """A model that torch can't run without its numbers."""


_COUNTED: dict[Hashable, Activations] = {}


def count_activations(
    config: PretrainedConfig,
    batch: MicroBatch,
    dtype: torch.dtype,
    *,
    checkpointing: bool = False,
    lora: LoraOptions | None = None,
    flex: bool = False,
    trains: bool = True,
) -> Activations:
    """What the layers of a model hold for ``batch``, without its head. ``flex``: with flex_attention, as on a GPU.
    ``trains`` false: a forward pass alone, which keeps its states and no layer's.

    Raises UsageError as ``empty_model`` and ``add_adapter`` do, CountingError for a model that does not run on shapes
    alone, such as one whose code asks for a number.
    """
    key = (type(config), config.to_json_string(use_diff=False), batch, dtype, checkpointing, lora, flex, trains)
    if key not in _COUNTED:
        model = empty_model(config)
        try:
            if checkpointing:
                checkpoint_activations(model)
            if lora is not None:
                add_adapter(model, lora)
            if not trains:
                model.requires_grad_(requires_grad=False)
            _COUNTED[key] = _count(model, batch, dtype, FlexBytes() if flex else None)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            reason = (str(error).splitlines() or [repr(error)])[0]
            raise CountingError(f"{type(model).__name__} does not run on shapes alone ({reason})") from error
    return _COUNTED[key]


class FlexBytes:
    """Keeps what flex_attention keeps, and computes something else: queries, keys, values, its output, and a float32
    number of each query, by a causal kernel over the one row of packed tokens."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        """See ``policy.layouts.Layout``."""
        return causal(query, key, value, call).transpose(1, 2)


def _count(model: PreTrainedModel, batch: MicroBatch, dtype: torch.dtype, layout: Layout | None) -> Activations:
    """The layers of each kind once, then each kind twice."""
    layers = list(layers_of(model))
    kinds = [_kind(layer) for layer in layers]
    first = {kind: kinds.index(kind) for kind in dict.fromkeys(kinds)}
    model.train()
    found = _run(model, [layers[at] for at in first.values()], batch, dtype, layout)
    kept = found.kept
    for kind in first:
        places = [at for at, one in enumerate(kinds) if one == kind]
        if len(places) == 1:
            continue
        chosen = sorted([*first.values(), places[1]])
        more = _run(model, [layers[at] for at in chosen], batch, dtype, layout)
        kept += (more.kept - found.kept) * (len(places) - 1)
    # The backward pass begins at the last layer, while all that was kept is there.
    return Activations(kept=kept, peak=kept + found.peak - found.kept)


def _kind(layer: nn.Module) -> Hashable:
    """Layers with the same parameters are of one kind."""
    return tuple((name, tuple(one.shape), one.requires_grad) for name, one in layer.named_parameters())


def _run(
    model: PreTrainedModel,
    layers: Sequence[nn.Module],
    batch: MicroBatch,
    dtype: torch.dtype,
    layout: Layout | None,
) -> Activations:
    """Forward and backward of the model with these ``layers`` only."""
    body = body_of(model)
    assert body is not None
    packed = _packed(batch)
    with (
        _only(model, layers),
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        _without_memory(body, dtype) as weights,
        _embedded(model),
        _quiet(),
    ):
        ids, packing = fake.from_tensor(packed[0]), _fake_packing(fake, packed[1])
        with _Live(weights) as live:
            hidden_LH = packed_states(body, ids, packing, layout=layout)
            hidden_RH = hidden_LH.index_select(0, packing.source_BT.flatten())
            del hidden_LH
            kept = live.now
            if hidden_RH.requires_grad:
                hidden_RH.backward(torch.empty_like(hidden_RH))  # type: ignore[no-untyped-call]
    return Activations(kept=kept, peak=live.peak)


@contextmanager
def _embedded(model: PreTrainedModel) -> Iterator[None]:
    """Inside, embedded tokens have a gradient and the table has none: a whole table's is counted with the weights'."""
    table: Any = model.get_input_embeddings()
    if not table.weight.requires_grad:
        yield
        return
    table.weight.requires_grad_(requires_grad=False)
    hook = table.register_forward_hook(lambda _, __, states: states.requires_grad_())
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs what does not run on shapes; it is raised, too."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _only(model: PreTrainedModel, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, the model has these layers only."""
    whole = layers_of(model)
    owner, name = next(
        (module, name) for module in model.modules() for name, one in module.named_children() if one is whole
    )
    setattr(owner, name, nn.ModuleList(layers))
    try:
        yield
    finally:
        setattr(owner, name, whole)


def _packed(batch: MicroBatch) -> tuple[Tensor, Packing]:
    """The places of a packed micro-batch, as the trainer makes them."""
    rows = []
    for row in range(batch.rows):
        ids = np.zeros(batch.prompt + batch.completion, dtype=np.int64)
        ids[0] = row // batch.group  # prompts that differ
        mask = np.arange(len(ids)) >= batch.prompt
        rows.append(supervised_sample(ids, mask))  # type: ignore[arg-type]
    made = pack(rows, 0, torch.device("cpu"))
    assert made.packing is not None
    return made.token_ids_BT, made.packing


def _fake_packing(fake: FakeTensorMode, packing: Packing) -> Packing:
    tensors = {name: getattr(packing, name) for name in Packing.__dataclass_fields__}
    fakes = {name: fake.from_tensor(one) for name, one in tensors.items() if isinstance(one, Tensor)}
    return replace(packing, **fakes)  # type: ignore[arg-type]


@contextmanager
def _without_memory(model: nn.Module, dtype: torch.dtype) -> Iterator[list[Tensor]]:
    """Inside, parameters (in ``dtype``) and buffers of ``model`` are fake tensors of a CPU."""
    whole: list[tuple[dict[str, Any], str, Tensor]] = [
        (table, name, one)
        for module in model.modules()
        for table in (module._parameters, module._buffers)
        for name, one in table.items()
        if one is not None
    ]
    fakes: dict[int, Tensor] = {}  # a tied parameter stays one
    for table, name, one in whole:
        if id(one) not in fakes:
            fakes[id(one)] = _fake(one, dtype)
        table[name] = fakes[id(one)]
    try:
        yield list(fakes.values())
    finally:
        for table, name, one in whole:
            table[name] = one


def _fake(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter in ``dtype``, whose gradients are counted elsewhere, or a buffer as it is."""
    if not isinstance(tensor, nn.Parameter):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    fake = nn.Parameter(torch.empty(tensor.shape, dtype=dtype, device="cpu"), requires_grad=tensor.requires_grad)
    if fake.requires_grad:
        fake.register_post_accumulate_grad_hook(_forget)  # type: ignore[no-untyped-call]
    return fake


def _forget(parameter: Tensor) -> None:
    """Free a gradient as soon as it is there."""
    parameter.grad = None


def _called(func: Any, args: Any, kwargs: Any) -> Any:
    """``func`` on fake tensors. torch computes grouped products of experts in float32 on CPUs, and knows their shapes
    in bfloat16 only."""
    if func is not torch.ops.aten._grouped_mm.default or args[0].dtype != torch.float32:
        return func(*args, **kwargs)
    left, right, *rest = args
    return func(left.bfloat16(), right.bfloat16(), *rest, **kwargs).float()


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that somebody holds; those of ``known`` tensors don't count."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {one.untyped_storage()._cdata: 0 for one in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = _called(func, args, kwargs or {})
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                self._add(one)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        size = storage.nbytes()
        self._sizes[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)
