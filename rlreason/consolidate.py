"""`rlreason consolidate`: a training state, of one process or of many ranks, as a Hugging Face folder.

Written tensor by tensor, so that a model which took many hosts to train is written by one with little memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from rlreason import __version__
from rlreason.errors import UsageError
from rlreason.outputs import check_new_folder
from rlreason.policy.loading import load_tokenizer, locate_model, read_config
from rlreason.policy.lora import ADAPTER_FOLDER, add_adapter, give_adapter, is_adapter, merged_weights, save_adapter
from rlreason.policy.model import quiet_loading
from rlreason.policy.offload import offloaded_weights
from rlreason.policy.policies import Policy
from rlreason.policy.upcycling import on_meta
from rlreason.run import atomic
from rlreason.run.states import SUMS, fault
from rlreason.trainer.states import MODEL, MODEL_FOLDER, StateNote, StateTensors, read_note
from rlreason.trainer.streaming import SHARD_BYTES, write_folder
from rlreason.upcycle import describe_source

CARD = "README.md"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsolidateOptions:
    """What is written. ``dtype`` "auto": what the run's checkpoints hold."""

    dtype: str = "auto"
    #: Of an adapter: the whole model with the adapter added, and the adapter beside it; otherwise the adapter alone.
    merge: bool = False
    #: What the adapter is an adapter of; None: what the state says.
    base: str | None = None
    shard_bytes: int = SHARD_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Consolidated:
    """What was written. ``what``: "model", "merged model" or "adapter"."""

    folder: Path
    what: str
    dtype: str
    #: Numbers in it; of an adapter its own.
    parameters: int
    #: Processes that wrote the state; 0: one without ranks.
    ranks: int


def consolidate(state: Path, out: Path, options: ConsolidateOptions) -> Consolidated:
    """Write the new folder ``out`` from the state in ``state`` (RUN/stages/NN-NAME/state/step-N), which is only read.

    Raises UsageError where it is none or damaged, or the base of its adapter is not found.
    """
    check_new_folder(out)
    quiet_loading()
    note = read_note(state)
    wrong = fault(state) if (state / SUMS).is_file() else None
    if wrong is not None:
        raise UsageError(f"{state} is damaged: {wrong}")
    saved = StateTensors(state)
    dtype = _DTYPES[note.dtype if options.dtype == "auto" else options.dtype]
    policy = _shape(state / MODEL_FOLDER)
    policy.model.config.dtype = dtype
    if note.lora is None and (options.merge or options.base is not None):
        raise UsageError(f"{state} is of a whole model, not of an adapter: leave --merge and --base out")
    made = Consolidated(
        folder=out,
        what="model" if note.lora is None else "merged model" if options.merge else "adapter",
        dtype=str(dtype).removeprefix("torch."),
        parameters=sum(one.numel() for one in policy.model.parameters()),
        ranks=note.ranks,
    )
    if note.lora is None:
        atomic.write_folder(out, lambda folder: _write_whole(folder, policy, saved, options, _card(made, state)))
        return made
    base = _base(state, note, options)
    trained = [name for name in saved.shapes if name.startswith(MODEL) and is_adapter(name)]
    names = {name.removeprefix(MODEL): name for name in trained}
    if not options.merge:
        made = replace(made, dtype="float32", parameters=sum(saved.shapes[key].numel() for key in names.values()))
    add_adapter(policy.model, note.lora)
    give_adapter(policy.model, {name: saved.read(key) for name, key in names.items()})
    card = _card(made, state, base)

    def fill(folder: Path) -> None:
        if options.merge:
            assert base is not None
            with _merged(policy.model, base, dtype, _DTYPES[note.computed]) as tensors:
                write_folder(policy, tensors, folder, options.shard_bytes)
        save_adapter(policy.model, folder / ADAPTER_FOLDER if options.merge else folder, _here, base=base)
        (folder / CARD).write_text(card, encoding="utf-8")

    atomic.write_folder(out, fill)
    return made


def _write_whole(folder: Path, policy: Policy, saved: StateTensors, options: ConsolidateOptions, card: str) -> None:
    dtype = policy.model.config.dtype
    write_folder(policy, _weights(policy.model, saved, dtype), folder, options.shard_bytes)
    (folder / CARD).write_text(card, encoding="utf-8")


def _here(tensor: Tensor) -> Tensor:
    return tensor


def _shape(folder: Path) -> Policy:
    """Config and tokenizer that the state brings, the model without numbers."""
    model = on_meta(read_config(folder))
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return Policy(model=model, tokenizer=load_tokenizer(folder))


def _weights(model: PreTrainedModel, saved: StateTensors, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Of a model that was trained whole; tied names come once."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name in model.state_dict():
        if name in model.all_tied_weights_keys:
            continue
        if MODEL + name not in saved.shapes:
            raise UsageError(f"the state has no tensor {name}, which {type(model).__name__} needs")
        found = saved.read(MODEL + name)
        yield name, found.to(dtype) if name in parameters else found


def _base(state: Path, note: StateNote, options: ConsolidateOptions) -> str | None:
    """Where the base is read from; None where an adapter alone is written of a base that is nowhere."""
    named = options.base or note.base
    if named is None:
        if options.merge:
            raise UsageError(
                f"{state} is of an adapter beside a model that its run built from nothing, whose weights are nowhere: "
                "name a folder that has them by --base"
            )
        return None
    try:
        return locate_model(named)
    except UsageError as error:
        if options.base is not None:
            raise
        if not options.merge:
            return named
        raise UsageError(f"{state} is of an adapter of {named}, which is gone: name its base by --base") from error


@contextmanager
def _merged(
    model: PreTrainedModel, base: str, dtype: torch.dtype, computed: torch.dtype
) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """W + scaling · B A, with W read from the disk when its turn comes, as the trainer had it."""
    with tempfile.TemporaryDirectory(prefix="rlreason-base-") as scratch:
        weights = offloaded_weights(base, Path(scratch), computed)

        def read(name: str) -> Tensor:
            if name not in weights:
                raise UsageError(f"{base} has no tensor {name}: it is not what the adapter was trained beside")
            return weights[name]

        yield merged_weights(model, dtype, _here, read)


def _card(made: Consolidated, state: Path, base: str | None = None) -> str:
    wrote = f"{made.ranks} ranks" if made.ranks else "one process"
    sums = state / SUMS
    sha256 = atomic.file_sha256(sums) if sums.is_file() else atomic.folder_sha256(state)
    return f"""---
library_name: {"peft" if made.what == "adapter" else "transformers"}
tags: {"[lora, rlreason]" if made.what == "adapter" else "[rlreason]"}
---
# {made.what.capitalize()} of a training state

Written by rlreason {__version__} (`rlreason consolidate`).

| | |
|---|---|
| State | `{state.absolute()}`, sha256 {f"of its {SUMS} " if sums.is_file() else "over all of its files "}`{sha256}` |
| Written by | {wrote} |
| Base of the adapter | {_described(base) if made.what != "model" else "none: all weights were trained"} |
| Numbers | {made.parameters:,}, {made.dtype} |
"""


def _described(base: str | None) -> str:
    """The base of an adapter, which may be gone where the adapter alone is written."""
    if base is None:
        return "a model that the run built from nothing"
    try:
        return describe_source(base, locate_model(base), read_config(base))
    except UsageError:
        return f"`{base}`"
