"""Which ranks share what: samples (FSDP), each layer's matrices (tensor parallelism, arXiv 1909.08053), and experts
(expert parallelism by token dispatch, arXiv 2006.16668). How a model is cut is transformers' own plan of it.

Example: 8 ranks, tensor_parallel = 2, expert_parallel = 4. Ranks 0 and 1 have the same samples and each half of every
attention head and matrix; ranks 0 to 3 have a quarter of the experts each and send each other tokens; everything is cut
once more over those ranks that would hold the same (FSDP). Embedding, last norm and head are cut over all ranks, as the
fused loss needs the head whole.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig
from transformers.distributed.tensor_parallel import (
    apply_expert_parallelism,
    apply_tensor_parallelism,
    resolve_parallel_plans,
)

from rlreason.errors import UsageError
from rlreason.routing import expert_count

#: What each layer has a whole number of, as configs call it.
_HEADS = ("num_attention_heads", "num_key_value_heads")
_DISPATCH = "ep_dispatch_experts"


@dataclass(frozen=True, slots=True)
class Meshes:
    """The ranks in rows. ``data``: those with other samples that hold the same part of a layer."""

    ranks: DeviceMesh
    data: DeviceMesh
    #: Those with the same samples; None: there is no tensor parallelism.
    tensor: DeviceMesh | None = None
    #: Those that hold different experts, and those that hold the same ones; None: experts are part of their layer.
    experts: DeviceMesh | None = None
    expert_copies: DeviceMesh | None = None

    @property
    def plain(self) -> bool:
        """Whether each rank holds a part of everything, and nothing else."""
        return self.tensor is None and self.experts is None

    def of(self, model: PreTrainedModel) -> Meshes:
        """The rows for ``model``: a dense one has no experts to spread."""
        if self.experts is None or expert_count(model):
            return self
        return Meshes(self.ranks, self.ranks if self.tensor is None else self.data, self.tensor)


def meshes(device_type: str, tensor_parallel: int = 1, expert_parallel: int = 1) -> Meshes:
    """Of all processes that have met; rank r has the samples of row r // tensor_parallel."""
    count = dist.get_world_size()
    ranks = init_device_mesh(device_type, (count,))
    if tensor_parallel == 1 and expert_parallel == 1:
        return Meshes(ranks, ranks)
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)  # of two gathers in a row
    dense = init_device_mesh(
        device_type, (count // tensor_parallel, tensor_parallel), mesh_dim_names=("data", "tensor")
    )
    tensor = dense["tensor"] if tensor_parallel > 1 else None
    if expert_parallel == 1:
        return Meshes(ranks, dense["data"], tensor)
    sparse = init_device_mesh(
        device_type, (count // expert_parallel, expert_parallel), mesh_dim_names=("copies", "experts")
    )
    return Meshes(ranks, dense["data"], tensor, sparse["experts"], sparse["copies"])


def cut_layers(model: PreTrainedModel, meshes: Meshes) -> list[nn.Module]:
    """Cut the layers of ``model``, on the meta device, over tensor and expert ranks, each rank's part in its place.

    Returns the modules of experts that are cut: their copies are on other ranks than those of their layer. Raises
    UsageError where transformers has no plan for the model, or a layer can't be divided so.
    """
    if meshes.plain:
        return []
    tensor = 1 if meshes.tensor is None else meshes.tensor.size()
    experts = 1 if meshes.experts is None else meshes.experts.size()
    check_division(model, tensor, experts)
    whole = [one for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one is not None]
    names = {name for name, module in model.named_modules() if any(module is one for one in whole)}
    model.tp_plan = {name: style for name, style in model.tp_plan.items() if name not in names}
    settings = DistributedConfig(fsdp_size=meshes.data.size(), tp_size=tensor, ep_size=experts)
    dense_plan, sparse_plan = resolve_parallel_plans(model, settings)
    _refuse_packed(model, dense_plan)
    if meshes.tensor is not None:
        apply_tensor_parallelism(model, meshes.tensor, dense_plan)
    if meshes.experts is None:
        return []
    apply_expert_parallelism(model, meshes.experts, meshes.tensor or _alone(meshes), sparse_plan)
    return [module for name, module in _cut(model) if name.endswith("experts")]


def _refuse_packed(model: PreTrainedModel, plan: Mapping[str, str]) -> None:
    """Two matrices in one (gate and up) are cut in the middle of each, which torch's checkpoints (2.13) take for parts
    that overlap: no state could be saved."""
    for name, style in plan.items():
        pattern = re.compile(re.escape(name).replace(r"\*", r"\d+") + r"(\.weight)?")
        if style.startswith("packed") and any(pattern.fullmatch(one) for one, _ in model.named_parameters()):
            raise UsageError(
                f"trainer.tensor_parallel: {type(model).__name__} has two matrices in one ({name}), whose parts can't "
                "be saved as a state; of experts, set trainer.expert_parallel to the same number"
            )


def _alone(meshes: Meshes) -> DeviceMesh:
    """A row of this rank alone: nobody has the same samples."""
    count = meshes.ranks.size()
    return init_device_mesh(meshes.ranks.device_type, (count, 1), mesh_dim_names=("data", "tensor"))["tensor"]


def _cut(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold a cut parameter themselves."""
    for name, module in model.named_modules():
        if any(isinstance(one, DTensor) for one in module.parameters(recurse=False)):
            yield name, module


def check_division(model: PreTrainedModel, tensor: int, experts: int) -> None:
    """Raise UsageError where ``model`` can't be cut so: no plan, heads or experts that are no multiple, or two matrices
    in one."""
    name, config = type(model).__name__, model.config.to_dict()
    if tensor > 1:
        if not model.tp_plan:
            raise UsageError(f"trainer.tensor_parallel: transformers does not say how {name} is cut")
        latent = "kv_lora_rank" in config  # every rank makes the keys of its own heads
        counts = {key: config[key] for key in _HEADS if key in config and not (latent and key == _HEADS[1])}
        counts |= {key: config[key] for key in config if key.endswith("intermediate_size") and config[key]}
        for key, count in counts.items():
            if isinstance(count, int) and count % tensor:
                raise UsageError(f"trainer.tensor_parallel = {tensor} must divide {name}'s {key} = {count}")
        if experts == 1:
            _refuse_packed(model, model.tp_plan)
    if experts > 1:
        count = expert_count(model)
        if not count:
            raise UsageError(f"trainer.expert_parallel: {name} has no experts")
        if _DISPATCH not in model.ep_plan.values():
            raise UsageError(f"trainer.expert_parallel: transformers does not say how tokens reach {name}'s experts")
        if count % experts:
            raise UsageError(f"trainer.expert_parallel = {experts} must divide {name}'s {count} experts")
