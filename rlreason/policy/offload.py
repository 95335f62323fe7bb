"""Models that don't fit where they are computed, by accelerate: their weights wait on the disk and come when it is
their turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlreason.errors import UsageError
from rlreason.policy.gguf import is_gguf
from rlreason.policy.loading import load_model, locate_model, read_config


def offloaded_weights(path: str, scratch: Path, dtype: torch.dtype) -> Mapping[str, Tensor]:
    """The tensors of a Hugging Face folder or hub id by transformers' names, each read when it is asked for, in
    ``dtype``.

    What is stored otherwise than transformers has it (each expert of its own) is written to ``scratch`` once. A GGUF
    file is held whole. Raises UsageError naming the path.
    """
    place = locate_model(path)
    if is_gguf(place):
        return dict(load_model(place, dtype, torch.device("cpu")).state_dict())
    try:
        model = AutoModelForCausalLM.from_pretrained(
            place, config=read_config(place), dtype=dtype, device_map={"": "disk"}, offload_folder=str(scratch)
        )
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"can't read the weights in {path}: {str(error).splitlines()[0]}") from error
    return _Cast(_disk_of(model), dtype)


def _disk_of(model: torch.nn.Module) -> Mapping[str, Tensor]:
    """What accelerate reads a dispatched model's weights from."""
    for module in model.modules():
        hook = vars(module).get("_hf_hook")
        weights = None if hook is None else vars(hook).get("weights_map")
        if weights is not None:
            found: Mapping[str, Tensor] = weights.dataset
            return found
    raise AssertionError("no weight of the model is on the disk")


class _Cast(Mapping[str, Tensor]):
    """Tensors of a mapping in another dtype, as they are asked for; what is no floating point stays."""

    def __init__(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self._tensors, self._dtype = tensors, dtype

    def __getitem__(self, name: str) -> Tensor:
        found = self._tensors[name]
        return found.to(self._dtype) if found.is_floating_point() else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
