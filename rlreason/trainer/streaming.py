"""A Hugging Face folder written tensor by tensor, for models that no single process holds.

A safetensors file is a header that says where each tensor lies, and their bytes behind it
(https://github.com/huggingface/safetensors#format). The header is known before any number is, so each tensor goes to
its place as it comes, and none is held for another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from rlreason.policy.lora import plain_shapes
from rlreason.policy.policies import Policy
from rlreason.policy.saving import save_without_weights

#: A shard is closed when it has this many bytes; as transformers writes them.
SHARD_BYTES = 5 * 10**9
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_folder(
    policy: Policy, tensors: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """``policy`` (numbers aside) with ``tensors`` on the CPU, by transformers' names, in shards of ``shard_bytes``.

    ``policy.model.config.dtype`` is what parameters come in. Holds one tensor at a time. Names in the files are the
    hub's (each expert of its own), as ``save_pretrained`` has it. Raises RuntimeError where a tensor is not what the
    model says, or is missing.
    """
    config = policy.model.config
    config.architectures = config.architectures or [type(policy.model).__name__]
    save_without_weights(policy.model, policy.tokenizer, folder)
    shards = _shards(_named_as_on_the_hub(policy.model, plain_shapes(policy.model, config.dtype)), shard_bytes)
    names = _file_names(len(shards))
    waiting = {name: (number, place) for number, shard in enumerate(shards) for name, place in shard.items()}
    total, weight_map = sum(one.bytes for _, one in waiting.values()), {n: names[at] for n, (at, _) in waiting.items()}
    with ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("wb")) for name in names]
        starts = [_write_header(file, shard) for file, shard in zip(files, shards, strict=True)]
        for name, tensor in _named_as_on_the_hub(policy.model, tensors):
            number, place = waiting.pop(name, (0, None))
            if place is None or (tensor.dtype, tensor.shape) != (place.dtype, place.shape):
                raise RuntimeError(f"{name} is {tensor.dtype} {list(tensor.shape)}, and the model's is {place}")
            files[number].seek(starts[number] + place.start)
            files[number].write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if waiting:
        raise RuntimeError(f"{len(waiting)} tensors of the model were not given, {next(iter(waiting))} first")
    for name in names:
        (folder / name).chmod((folder / "config.json").stat().st_mode & 0o777)
    if len(names) > 1:
        found = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        text = json.dumps(found, indent=2) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in the bytes of its file."""

    dtype: torch.dtype
    shape: torch.Size
    start: int

    @property
    def bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


def _shards(tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> list[dict[str, _Place]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors:
        if size >= shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return [_places(one) for one in shards]


def _places(tensors: dict[str, Tensor]) -> dict[str, _Place]:
    """Wider types first, so that each number lies at a multiple of its size."""
    found, start = {}, 0
    for name, one in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
        found[name] = _Place(one.dtype, one.shape, start)
        start += found[name].bytes
    return found


def _write_header(file: BinaryIO, places: dict[str, _Place]) -> int:
    """Bytes that lie before the first tensor's."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, one in places.items():
        header[name] = {
            "dtype": _DTYPES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [one.start, one.start + one.bytes],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    os.truncate(file.fileno(), 8 + len(text) + sum(one.bytes for one in places.values()))
    return 8 + len(text)


def _named_as_on_the_hub(model: PreTrainedModel, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    tied = set(model.all_tied_weights_keys)
    for name, tensor in tensors:
        if name not in tied:
            yield from revert_weight_conversion(model, {name: tensor}).items()


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
