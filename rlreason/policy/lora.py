"""LoRA (Hu et al. 2021, arXiv 2106.09685) by peft: small matrices A and B beside frozen weights, W + scaling · B A.

The base is never touched: merged weights are computed from whole tensors, so that nothing of a delivery's rounding
stays behind (peft's ``merge_adapter`` and back leaves 1e-8 in the base each time).

O = out, I = in, R = rank, E = experts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlreason.delivery.adapter import delta
from rlreason.delivery.packing import Factor
from rlreason.errors import UsageError
from rlreason.routing import routers_in

if TYPE_CHECKING:
    from peft.tuners.lora.layer import LoraLayer

#: The one adapter of a model.
_ADAPTER = "default"
#: What transformers calls the stacked weights of experts, [E, O, I] or [E, I, O].
_EXPERTS = ("gate_up_proj", "down_proj")
#: Routers are left as they are: which expert is chosen is not learnt in a few directions.
_ROUTERS = ("gate", "router")
#: The folder of the adapter beside a merged checkpoint.
ADAPTER_FOLDER = "adapter"
Gather = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOptions:
    """Example: ``LoraOptions(rank=16, alpha=32.0)``: scaling alpha / rank = 2 on every linear layer but the head.

    Of the families of DeepSeek and GLM dense MLPs and shared experts are left out: peft (0.21.2) takes their names for
    those of routed experts in checkpoints of transformers 4, here and where the saved adapter is loaded.
    """

    rank: int
    alpha: float
    #: Names of linear layers; empty: all of them but the head.
    targets: tuple[str, ...] = ()
    #: The routed experts too.
    experts: bool = False
    seed: int = 0


def add_adapter(model: PreTrainedModel, options: LoraOptions) -> None:
    """Put A (random) and B (zeros) beside the weights of ``model``, of any device, and freeze all else: the model says
    what it said before. Raises UsageError for targets or experts that it has not."""
    from peft import LoraConfig, inject_adapter_in_model  # slow to import

    stacked = [f"experts.{name}" for name in _EXPERTS if options.experts and _has_experts(model, name)]
    if options.experts and not stacked:
        raise UsageError(
            f"trainer.lora.experts: {type(model).__name__} has no stacked experts; leave the key out, or give the "
            "stage that trains this model lora = false"
        )
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # peft divides it, and takes any number
        target_modules=_targets(model, options.targets),
        target_parameters=stacked,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        try:
            inject_adapter_in_model(config, model, _ADAPTER)
        except ValueError as error:
            raise UsageError(f"trainer.lora: {str(error).splitlines()[0]}") from error


def _targets(model: PreTrainedModel, named: tuple[str, ...]) -> str:
    """Layers by a pattern over their last names; without names all linear ones but the head and routers.

    Raises UsageError for a name that peft would take for the routed experts'.
    """
    if named:
        taken = ", ".join(sorted(set(named) - _kept_by_peft(model, set(named))))
        if taken:
            raise UsageError(
                f"trainer.lora.targets: peft takes {taken} of {type(model).__name__} for its routed experts: leave it "
                "out (trainer.lora.experts = true adapts those)"
            )
        return _pattern(named)
    head = model.get_output_embeddings()
    routers = tuple(f"{name}." for name, _ in routers_in(model))
    linear = [
        name
        for name, one in model.named_modules()
        if isinstance(one, nn.Linear) and one is not head and not name.startswith(routers)
    ]
    return _pattern(_kept_by_peft(model, {name.rpartition(".")[2] for name in linear} - set(_ROUTERS)))


def _pattern(names: Iterable[str]) -> str:
    return rf".*\.(?:{'|'.join(map(re.escape, sorted(names)))})"


def _kept_by_peft(model: PreTrainedModel, names: set[str]) -> set[str]:
    """Those that peft does not turn into parameters of the stacked experts, as it does for adapters of old."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    probe = LoraConfig(target_modules=sorted(names))
    try:
        convert_peft_config_for_transformers(probe, model=model, conversions=None)
    except ValueError as error:  # one of two names that it would turn into one
        raise UsageError(f"trainer.lora.targets: {str(error).splitlines()[0]}") from error
    return names & set(probe.target_modules or ())


def _has_experts(model: nn.Module, name: str) -> bool:
    return any(one.endswith(f"experts.{name}") for one, _ in model.named_parameters())


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name is of the adapter."""
    return ".lora_" in name


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model is its base: the policy that training began with."""
    layers = list(_adapted(model).values())
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


def plain_shapes(
    model: PreTrainedModel, dtype: torch.dtype, wide: Collection[str] = ()
) -> Iterator[tuple[str, Tensor]]:
    """What ``merged_weights`` gives, on the meta device."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)} - set(wide)
    for name, tensor in model.state_dict().items():
        if not is_adapter(name):
            own = dtype if name in parameters else tensor.dtype
            yield name.replace(".base_layer", ""), torch.empty(tensor.shape, dtype=own, device="meta")


@torch.no_grad()
def merged_weights(
    model: PreTrainedModel,
    dtype: torch.dtype,
    whole: Gather,
    base: Callable[[str], Tensor] | None = None,
    wide: Collection[str] = (),
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model without an adapter, by transformers' names, W + scaling · B A where there is one, added
    in float32 and rounded to ``dtype`` once; buffers, and parameters in ``wide``, as they are.

    ``whole`` makes a whole tensor of a shard. ``base`` reads a tensor by transformers' name, where the model's own have
    no numbers.
    """
    owners = _adapted(model)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)} - set(wide)
    for name, tensor in model.state_dict().items():
        if is_adapter(name):
            continue
        plain = name.replace(".base_layer", "")
        found = whole(tensor) if base is None else base(plain)
        if name not in parameters:
            yield plain, found
            continue
        owner = _owner(owners, name)
        if owner is not None:
            found = found.float() + _delta(owner, whole).to(found.device)
        yield plain, found.to(dtype)


def _adapted(model: nn.Module) -> dict[str, LoraLayer]:
    """The modules that hold an adapter; none of a model without."""
    if not any(is_adapter(name) for name, _ in model.named_parameters()):
        return {}
    from peft.tuners.lora.layer import LoraLayer

    return {name: one for name, one in model.named_modules() if isinstance(one, LoraLayer)}


def _owner(owners: Mapping[str, LoraLayer], name: str) -> LoraLayer | None:
    """The layer whose adapter is of the parameter; wrappers of several parameters of one module are nested."""
    path, _, leaf = name.rpartition(".")
    while True:
        owner = owners.get(path)
        if owner is not None and leaf == (owner.parameter_name if _is_stacked(owner) else "weight"):
            return owner
        if not path.endswith(".base_layer"):
            return None
        path = path.removesuffix(".base_layer")


def _is_stacked(layer: LoraLayer) -> bool:
    """Whether the adapter is of a parameter with all experts, and not of a linear layer."""
    from peft.tuners.lora.layer import ParamWrapper

    return isinstance(layer, ParamWrapper)


def _delta(layer: LoraLayer, whole: Gather) -> Tensor:
    """scaling · B A, float32, in the shape of the weight."""
    return delta(_factor("", layer), *(whole(one) for one in _matrices(layer)))


def _matrices(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """A and B."""
    return layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight


def _factor(weight: str, layer: LoraLayer) -> Factor:
    stacked = _is_stacked(layer)
    return Factor(
        weight=weight,
        scaling=float(layer.scaling[_ADAPTER]),
        experts=int(layer.num_experts) if stacked else 0,
        input_first=stacked and not layer._did_swap_in_out_features,
    )


def _targets_of(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Each weight with an adapter, by transformers' names, in the order of the model's state."""
    owners = _adapted(model)
    for name, _ in model.named_parameters():
        if not is_adapter(name) and (owner := _owner(owners, name)) is not None:
            yield name.replace(".base_layer", ""), owner


def adapter_factors(model: nn.Module) -> tuple[Factor, ...]:
    """Where the adapter's matrices go."""
    return tuple(_factor(name, layer) for name, layer in _targets_of(model))


@torch.no_grad()
def adapter_matrices(model: nn.Module, whole: Gather) -> Iterator[tuple[str, Tensor]]:
    """A, then B of each of ``adapter_factors``, as the model computes with them now."""
    for name, layer in _targets_of(model):
        for one, matrix in zip(_factor(name, layer).names, _matrices(layer), strict=True):
            yield one, whole(matrix.detach())


@torch.no_grad()
def base_weights(
    model: PreTrainedModel, dtype: torch.dtype, whole: Gather, wide: Collection[str] = ()
) -> Iterator[tuple[str, Tensor]]:
    """What ``merged_weights`` gives before any training: the frozen weights and the buffers."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)} - set(wide)
    for name, tensor in model.state_dict().items():
        if not is_adapter(name):
            found = whole(tensor)
            yield name.replace(".base_layer", ""), found.to(dtype) if name in parameters else found


def give_adapter(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Numbers for the adapter of a model on the meta device. Raises UsageError where they are another one's."""
    own = {name: one.shape for name, one in model.state_dict().items() if is_adapter(name)}
    given = {name: one.shape for name, one in tensors.items()}
    differs = sorted(own.items() ^ given.items())
    if differs:
        raise UsageError(f"the adapter is of another model: {differs[0][0]} differs")
    model.load_state_dict(dict(tensors), strict=False, assign=True)


@torch.no_grad()
def save_adapter(
    model: PreTrainedModel, folder: Path, whole: Gather, *, base: str | None = None, write: bool = True
) -> None:
    """The adapter in peft's format, for ``PeftModel.from_pretrained`` and vLLM. ``base``: where its base is.

    Of shards: called on all ranks, of which one is to ``write``.
    """
    from peft import get_peft_model_state_dict

    tensors = {
        f"base_model.model.{name}": whole(one).cpu().contiguous()
        for name, one in get_peft_model_state_dict(model, adapter_name=_ADAPTER).items()
    }
    if not write:
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config: Any = next(iter(model.peft_config.values()))
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    settings |= {"inference_mode": True, "task_type": "CAUSAL_LM", "base_model_name_or_path": base}
    text = json.dumps(settings, indent=2, sort_keys=True, default=str)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
