"""A trainer's state on disk: written by one process or by any number of ranks, and read by any.

    trainer.json       who wrote it, counters, and what an adapter is the adapter of
    model/             config and tokenizer, without weights
    parameters.safetensors, optimizer.safetensors      of one process; reference.safetensors of a renewed reference
    shards/                                            of ranks (torch.distributed.checkpoint), each its own

Read by as many ranks as wrote it, the next steps are the same bits; by another number sums are in another order, and
gradients differ by their rounding (about 1e-7). Nothing here holds more than one whole tensor beside the trainer.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from rlreason.errors import UsageError
from rlreason.policy.lora import LoraOptions
from rlreason.policy.policies import Policy
from rlreason.policy.saving import save_without_weights
from rlreason.trainer.optimizer import PolicyOptimizer, Trainable

NOTE, MODEL_FOLDER, SHARDS = "trainer.json", "model", "shards"
PARAMETERS, OPTIMIZER, REFERENCE = "parameters.safetensors", "optimizer.safetensors", "reference.safetensors"
#: Names of what a state holds: "model.NAME", what is trained and buffers; "optimizer.KEY.NAME"; "reference.NAME" of a
#: reference that is not what the stage began with.
MODEL, _OPTIMIZER, _REFERENCE = "model.", "optimizer.", "reference."
_FILES = ((PARAMETERS, MODEL), (OPTIMIZER, _OPTIMIZER), (REFERENCE, _REFERENCE))


@dataclass(frozen=True, slots=True, kw_only=True)
class StateNote:
    """trainer.json. Example: ``StateNote(ranks=2, skipped_in_a_row=0, dtype="bfloat16", computed="bfloat16")``."""

    #: Processes that wrote it; 0: a trainer in the run's own process.
    ranks: int
    #: See ``PolicyOptimizer``.
    skipped_in_a_row: int
    #: What the trainer's checkpoints hold.
    dtype: str
    #: What the model computes in.
    computed: str
    #: The folder, file or hub id that the model was read from; None: it was built from nothing.
    base: str | None = None
    #: What is trained, where it is an adapter: the state has nothing of the base.
    lora: LoraOptions | None = None


def read_note(folder: Path) -> StateNote:
    """Who wrote a state. Raises UsageError where ``folder`` is none."""
    try:
        found = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        lora = found.pop("lora")
        if lora is not None:
            lora = LoraOptions(**{**lora, "targets": tuple(lora["targets"])})
        return StateNote(**found, lora=lora)
    except OSError as error:
        states = sorted(folder.glob(f"**/step-*/{NOTE}")) if folder.is_dir() else []
        hint = f"did you mean {states[-1].parent}?" if states else "RUN/stages/NN-NAME/state/step-N is one"
        raise UsageError(f"{folder} is no state of a trainer: it has no {NOTE}; {hint}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{folder / NOTE} is damaged or from another version: {error}") from error


def save_state(
    folder: Path,
    policy: Policy,
    trainable: Trainable,
    optimizer: PolicyOptimizer,
    note: StateNote,
    reference: nn.Module | None = None,
) -> None:
    """Write weights, moments and counters; with ranks called on all of them with one folder, which all of them see.

    ``reference``: where it is not what the trainer began with.
    """
    tensors = _tensors(policy.model, trainable, optimizer.state()) | _weights(reference)
    if note.ranks:
        save(dict(tensors), checkpoint_id=folder / SHARDS)
        if dist.get_rank():
            return
    else:
        for name, prefix in _FILES if reference is not None else _FILES[:2]:
            own = {key.removeprefix(prefix): one for key, one in tensors.items() if key.startswith(prefix)}
            save_file({key: one.contiguous() for key, one in own.items()}, folder / name)
    config = policy.model.config
    config.architectures = config.architectures or [type(policy.model).__name__]
    save_without_weights(policy.model, policy.tokenizer, folder / MODEL_FOLDER)
    (folder / NOTE).write_text(json.dumps(asdict(note), indent=1) + "\n", encoding="utf-8")


def check_whole(folder: Path) -> None:
    """Raise UsageError where not all that ranks wrote of a state can be seen from here."""
    shards = folder / SHARDS
    files = [folder / NOTE, shards / ".metadata"]
    if files[1].is_file():
        parts = FileSystemReader(shards).read_metadata().storage_data or {}
        files += sorted({shards / one.relative_path for one in parts.values()})
    check_seen(files)


def check_seen(files: Sequence[Path]) -> None:
    """Raise UsageError where a file that ranks wrote is not there."""
    for file in files:
        if not file.is_file():
            raise UsageError(
                f"{file}: a trainer rank wrote it, and the host of the run can't see it: the run directory must be on "
                "a file system that all hosts share (--out)"
            )


@torch.no_grad()
def take_weights(into: nn.Module, source: nn.Module) -> None:
    """Copy parameters and buffers of a model of the same shape, whole or sharded alike, in the dtype of ``into``."""
    found = dict(source.named_parameters())
    for name, one in into.named_parameters():
        one.copy_(found[name])
    kept = dict(source.named_buffers())
    for name, buffer in into.named_buffers():
        buffer.copy_(kept[name])


def _weights(reference: nn.Module | None) -> dict[str, Tensor]:
    """Of a reference; empty of none."""
    if reference is None:
        return {}
    return {_REFERENCE + name: one for name, one in (*reference.named_parameters(), *reference.named_buffers())}


@torch.no_grad()
def load_state(
    folder: Path,
    model: nn.Module,
    trainable: Trainable,
    optimizer: PolicyOptimizer,
    reference: nn.Module | None = None,
) -> bool:
    """Take over what ``save_state`` wrote, whoever did; with ranks called on all of them. Returns whether that has a
    reference, which is then read into ``reference``.

    Raises UsageError where it is of another model.
    """
    note, saved = read_note(folder), StateTensors(folder)
    moments = {
        f"{key}.{name}": torch.zeros((), dtype=torch.float32) if key == "step" else torch.zeros_like(one)
        for name, one in zip(trainable.names, trainable.parameters, strict=True)
        for key in ("step", "exp_avg", "exp_avg_sq")
        if f"{_OPTIMIZER}{key}.{name}" in saved.shapes  # a parameter without has not been stepped yet
    }
    renewed = any(name.startswith(_REFERENCE) for name in saved.shapes)
    own = _tensors(model, trainable, moments) | _weights(reference if renewed else None)
    differs = sorted(own.keys() ^ saved.shapes.keys())
    differs += [name for name, one in own.items() if name in saved.shapes and one.shape != saved.shapes[name]]
    if differs:
        raise UsageError(f"{folder} is the state of another model: {differs[0]} differs")
    saved.read_into(own)
    trainable.round_into_model()
    optimizer.load_state(moments)
    optimizer.skipped_in_a_row = note.skipped_in_a_row
    return renewed


def _tensors(model: nn.Module, trainable: Trainable, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is trained, buffers (such as DeepSeek's correction bias of its router), and moments."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found = {MODEL + name: one.detach() for name, one in zip(trainable.names, trainable.parameters, strict=True)}
    found |= {MODEL + name: one for name, one in model.state_dict().items() if name not in parameters}
    return found | {_OPTIMIZER + name: one for name, one in moments.items()}


class StateTensors:
    """The tensors of a state, read one at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError where they are not there."""
        self._shards, self._dtypes = folder / SHARDS, {}
        self._files: dict[str, tuple[Path, str]] = {}
        #: Of whole tensors, by name.
        self.shapes: dict[str, torch.Size] = {}
        if self._shards.is_dir():
            for name, one in FileSystemReader(self._shards).read_metadata().state_dict_metadata.items():
                if isinstance(one, TensorStorageMetadata):
                    self.shapes[name], self._dtypes[name] = one.size, one.properties.dtype
            return
        for path, prefix in ((folder / name, prefix) for name, prefix in _FILES):
            if prefix == _REFERENCE and not path.is_file():
                continue
            if not path.is_file():
                raise UsageError(f"{folder} is no whole state: it has neither {SHARDS}/ nor {path.name}")
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  not a dict
                    self._files[prefix + name] = path, name
                    self.shapes[prefix + name] = torch.Size(file.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """One whole tensor, on the CPU."""
        if name in self._files:
            path, inside = self._files[name]
            with safe_open(path, framework="pt") as file:
                found: Tensor = file.get_tensor(inside)
            return found
        found = torch.empty(self.shapes[name], dtype=self._dtypes[name])
        self._load({name: found}, alone=True)
        return found

    def _load(self, tensors: dict[str, Tensor], *, alone: bool) -> None:
        with warnings.catch_warnings():  # torch says that there are no ranks, which is known
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(tensors, checkpoint_id=self._shards, no_dist=alone)

    def read_into(self, tensors: dict[str, Tensor]) -> None:
        """Fill ``tensors``, whole or sharded, in place; shards are read by all ranks at once."""
        if not self._files:
            self._load(tensors, alone=not dist.is_initialized())
            return
        for name, one in tensors.items():
            found = self.read(name)
            if isinstance(one, DTensor):  # every rank takes its share of the file, and sends nothing
                share = distribute_tensor(found, one.device_mesh, one.placements, src_data_rank=None)
                one.to_local().copy_(share.to_local())
            else:
                one.copy_(found)
