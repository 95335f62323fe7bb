"""A Hugging Face folder written tensor by tensor, for models that no single process holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from rlreason.policy.policies import Policy
from rlreason.policy.saving import save_without_weights

#: A shard is closed when it has this many bytes; as transformers writes them.
SHARD_BYTES = 5 * 10**9


def write_folder(
    policy: Policy, tensors: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """``policy`` (numbers aside) with ``tensors`` on the CPU, by transformers' names, in shards of ``shard_bytes``.

    Holds one shard at a time. Names in the files are the hub's (each expert of its own), as ``save_pretrained`` has it.
    """
    config = policy.model.config
    config.architectures = config.architectures or [type(policy.model).__name__]
    save_without_weights(policy.model, policy.tokenizer, folder)
    index: dict[str, int] = {}
    shard: dict[str, Tensor] = {}
    size, total, written = 0, 0, 0
    for name, tensor in _named_as_on_the_hub(policy.model, tensors):
        shard[name] = tensor.contiguous().clone() if tensor._base is not None else tensor.contiguous()
        size += tensor.nbytes
        if size >= shard_bytes:
            index |= _write(shard, folder, written)
            shard, size, total, written = {}, 0, total + size, written + 1
    if shard:
        index |= _write(shard, folder, written)
        total, written = total + size, written + 1
    _name_shards(folder, index, written, total)


def _named_as_on_the_hub(model: PreTrainedModel, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    tied = set(model.all_tied_weights_keys)
    for name, tensor in tensors:
        if name not in tied:
            yield from revert_weight_conversion(model, {name: tensor}).items()


def _part(number: int) -> str:
    return f"part-{number:05d}.safetensors"


def _write(shard: dict[str, Tensor], folder: Path, number: int) -> dict[str, int]:
    save_file(shard, folder / _part(number), metadata={"format": "pt"})
    (folder / _part(number)).chmod((folder / "config.json").stat().st_mode & 0o777)
    return dict.fromkeys(shard, number)


def _name_shards(folder: Path, index: dict[str, int], count: int, total: int) -> None:
    """The names say how many there are, which is known at the end only."""
    if count == 1:
        (folder / _part(0)).rename(folder / "model.safetensors")
        return
    names = [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
    for number, name in enumerate(names):
        (folder / _part(number)).rename(folder / name)
    found = {"metadata": {"total_size": total}, "weight_map": {name: names[at] for name, at in sorted(index.items())}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
