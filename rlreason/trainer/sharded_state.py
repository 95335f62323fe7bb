"""States of a sharded trainer, by torch.distributed.checkpoint: each rank writes its shards, any number of ranks reads.

Loaded on as many ranks as wrote it, the next steps are the same bits; on another number sums are in another order, and
gradients differ by their rounding (about 1e-7).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from rlreason.errors import UsageError
from rlreason.trainer.optimizer import PolicyOptimizer
from rlreason.trainer.sharding import ShardedParameters

#: The folder inside a state's.
SHARDS = "shards"
_MODEL, _OPTIMIZER, _SKIPPED = "model.", "optimizer.", "skipped_in_a_row"


def save_sharded(folder: Path, model: nn.Module, trainable: ShardedParameters, optimizer: PolicyOptimizer) -> None:
    """Write weights, moments and counters; called on all ranks with one folder, which all of them see."""
    save(_state(model, trainable, optimizer.state(), optimizer.skipped_in_a_row), checkpoint_id=folder / SHARDS)


@torch.no_grad()
def load_sharded(folder: Path, model: nn.Module, trainable: ShardedParameters, optimizer: PolicyOptimizer) -> None:
    """Take over what ``save_sharded`` wrote. Raises UsageError where it is of another model or of another trainer."""
    place = folder / SHARDS
    if not place.is_dir():
        raise UsageError(
            f"{folder} is the state of a trainer in one process: it goes on with trainer.ranks = 0 (or start anew)"
        )
    saved = FileSystemReader(place).read_metadata().state_dict_metadata
    moments = {
        f"{key}.{name}": torch.zeros((), dtype=torch.float32) if key == "step" else torch.zeros_like(one)
        for name, one in zip(trainable.names, trainable.parameters, strict=True)
        for key in ("step", "exp_avg", "exp_avg_sq")
        if f"{_OPTIMIZER}{key}.{name}" in saved  # a parameter without has not been stepped yet
    }
    state = _state(model, trainable, moments, 0)
    differs = sorted(state.keys() ^ saved.keys())
    differs += [name for name, one in state.items() if name in saved and one.shape != _size(saved[name])]
    if differs:
        raise UsageError(f"{folder} is the state of another model: {differs[0]} differs")
    load(state, checkpoint_id=place)
    optimizer.load_state({name: state[_OPTIMIZER + name] for name in moments})
    optimizer.skipped_in_a_row = int(state[_SKIPPED])


def _size(saved: object) -> torch.Size | None:
    return saved.size if isinstance(saved, TensorStorageMetadata) else None


def _state(
    model: nn.Module, trainable: ShardedParameters, moments: dict[str, Tensor], skipped: int
) -> dict[str, Tensor]:
    """One flat dict: what is trained, and buffers."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found = {_MODEL + name: one.detach() for name, one in zip(trainable.names, trainable.parameters, strict=True)}
    found |= {_MODEL + name: one for name, one in model.state_dict().items() if name not in parameters}
    found |= {_OPTIMIZER + name: one for name, one in moments.items()}
    return found | {_SKIPPED: torch.tensor(skipped)}
