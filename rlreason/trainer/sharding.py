"""FSDP2 (Zhao et al. 2023, arXiv 2304.11277): a model's parameters in shards over N ranks, gathered layer by layer.

Parameters, gradients and moments are float32 DTensors, each rank's share of them; a layer is gathered in the compute
dtype when it is computed, a wide router in float32. Gradients of ranks are *added*: a loss is already divided by the
step's global counts, and torch's default, the mean, would make the step N times too small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from rlreason.errors import UsageError
from rlreason.policy.lora import is_adapter
from rlreason.policy.model import cast_parameters
from rlreason.trainer.masters import sampled_places
from rlreason.trainer.parallel import Meshes, cut_layers
from rlreason.wide_routers import is_wide

Found = TypeVar("Found")
#: The method by which a sharded model is entered: FSDP gathers the root's parameters (embedding, last norm, head)
#: before it and frees them behind it, whatever it computes.
_INSIDE = "compute_inside"


def shard(
    model: PreTrainedModel, meshes: Meshes, dtype: torch.dtype, device: torch.device, *, offload: bool = False
) -> PreTrainedModel:
    """``model``, of the meta device, as empty shards on ``device`` that compute in ``dtype``; ``fill`` gives numbers.

    ``offload``: shards, gradients and moments stay in the CPU's memory; only what is computed is on ``device``.
    Raises UsageError for an architecture whose layers transformers does not name, or that can't be cut as asked.
    """
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise UsageError(f"{type(model).__name__} can't be sharded: transformers does not say which its layers are")
    experts = cut_layers(model, meshes)
    pinned = CPUOffloadPolicy(pin_memory=device.type == "cuda")
    options: dict[str, Any] = {
        # Inputs are left alone: a cast would reach into batches, and advantages and log-probabilities are float32.
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False),
        "offload_policy": pinned if offload else OffloadPolicy(),
        # The root too (torch's default is not): what a pass without gradients gathered would be stale after a step.
        "reshard_after_forward": True,
    }
    for module in experts:
        fully_shard(module, mesh=meshes.expert_copies, **options)
    exact = {**options, "mp_policy": replace(options["mp_policy"], param_dtype=torch.float32)}
    for module in filter(is_wide, list(model.modules())):
        fully_shard(module, mesh=meshes.data, **exact)
    for layer in layers:
        fully_shard(layer, mesh=meshes.data, **options)
    fully_shard(model, mesh=meshes.ranks, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other way
    if meshes.tensor is not None:  # ranks with the same samples have the same gradient of what is not cut between them
        assert isinstance(model, FSDPModule)
        model.set_gradient_divide_factor(float(meshes.tensor.size()))
    setattr(model, _INSIDE, MethodType(lambda _, work: work(), model))
    register_fsdp_forward_method(model, _INSIDE)
    model.to_empty(device=torch.device("cpu") if offload else device)
    return model


def inside(model: PreTrainedModel, work: Callable[[], Found]) -> Found:
    """``work()`` while the root's parameters are gathered. Its tensors must come back as plain tuples, lists or dicts:
    FSDP finds the end of the backward pass by them."""
    found: Found = getattr(model, _INSIDE)(work)
    return found


@torch.no_grad()
def fill(model: PreTrainedModel, source: PreTrainedModel | None, meshes: Meshes) -> None:
    """Give a sharded ``model`` the numbers of ``source``, which rank 0 has and the others don't, tensor by tensor."""
    mesh = meshes.ranks
    first = mesh.get_rank() == 0
    parameters, buffers = _tensors(source, first=first)
    for name, one in model.named_parameters():
        assert isinstance(one, DTensor)
        local = one.to_local()
        device = torch.device(mesh.device_type)
        whole = torch.empty(one.shape, dtype=local.dtype, device=device)
        if first:
            whole.copy_(parameters[name])
        if not meshes.plain:  # rows of ranks without rank 0 have nobody to ask
            dist.broadcast(whole, src=0, group=mesh.get_group())
        source_rank = 0 if meshes.plain else None
        local.copy_(distribute_tensor(whole, one.device_mesh, one.placements, src_data_rank=source_rank).to_local())
    for name, buffer in model.named_buffers():
        if first:
            buffer.copy_(buffers[name])
        moved = buffer.to(mesh.device_type)
        dist.broadcast(moved, src=0, group=mesh.get_group())
        buffer.copy_(moved)
    _check_whole(model)
    assert isinstance(model, FSDPModule)
    model.unshard()  # a head tied to the embedding is one parameter again
    model.reshard()


def _tensors(source: PreTrainedModel | None, *, first: bool) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    if not first:
        return {}, {}
    assert source is not None, "rank 0 brings the numbers"
    return dict(source.named_parameters(remove_duplicate=False)), dict(source.named_buffers())


def _check_whole(model: nn.Module) -> None:
    """A tensor that is neither parameter nor buffer was made on the meta device and has no numbers."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                raise UsageError(f"{type(model).__name__} can't be sharded: {name}.{key} is outside of its state")


def whole(tensor: Tensor) -> Tensor:
    """The tensor of all ranks, on each of them; called on all of them in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class ShardedParameters:
    """The trainable parameters of a sharded model: each rank's share, float32 (``optimizer.Trainable``)."""

    def __init__(self, model: nn.Module, mesh: DeviceMesh) -> None:
        self._mesh = mesh
        trainable = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
        self.names = [name for name, _ in trainable]
        self.parameters: Sequence[nn.Parameter] = [one for _, one in trainable]
        self._local = [_local(one) for one in self.parameters]
        self._sampled = sampled_places(self._local)

    def round_into_model(self) -> None:
        """Nothing to do: FSDP rounds what it gathers."""

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Some of this rank's weights, [about 8,192] float32: always the same ones."""
        found = [_local(one).reshape(-1)[at] for one, at in zip(self.parameters, self._sampled, strict=True)]
        return torch.cat(found) if found else torch.zeros(0)

    def compare(self, before: Tensor) -> tuple[float, bool]:
        """(share of the sampled weights of all ranks that differ from ``before``, whether all are finite)."""
        after = self.sample()
        sums = torch.stack([(after != before).sum(), (~after.isfinite()).sum(), torch.tensor(len(after)).to(after)])
        sums = self._add_up(sums.double())
        return float(sums[0] / sums[2].clamp(min=1)), not sums[1]

    def finite(self, tensor: Tensor) -> bool:
        """Whether every element is finite, on all ranks."""
        return not self._add_up((~_local(tensor).isfinite()).sum().double())

    def _add_up(self, tensor: Tensor) -> Tensor:
        moved = tensor.to(self._mesh.device_type)
        dist.all_reduce(moved, group=self._mesh.get_group())
        return moved.cpu()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """``model`` of the meta device with parameters in ``dtype``, as its shards will be stored; adapters in float32."""
    cast_parameters(model, dtype)
    for name, one in model.named_parameters():
        if is_adapter(name):
            one.data = one.data.float()
    return model
