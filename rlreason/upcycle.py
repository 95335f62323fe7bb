"""`rlreason upcycle`: a dense model, written as the folder of a mixture of experts with a card that says its origin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from rlreason import __version__
from rlreason.outputs import check_new_folder
from rlreason.policy.loading import load_model, load_tokenizer, locate_model, read_config
from rlreason.policy.model import count_parameters, quiet_loading
from rlreason.policy.policies import Policy
from rlreason.policy.upcycling import UpcycleOptions, on_meta, sparse_config, sparse_tensors
from rlreason.run import atomic
from rlreason.trainer.streaming import write_folder

#: Bytes of one file of weights, which is what is held beside the dense model.
SHARD_BYTES = 10**9
#: What both models read to be compared.
PROBE = "A farmer has 17 hens and buys 25 more. How many hens are there now? 17 + 25 = 42, so there are 42 hens."
#: Largest difference of two logits that is rounding, relative to the largest logit: float32, some hundred operations
#: one after the other. A wrong map is off by as much as the logits are.
ROUNDING = 1e-5
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Upcycled:
    """What was written. ``difference``: of the logits of dense and sparse model on ``PROBE``, at most; None: not
    compared."""

    folder: Path
    target: str
    #: (all parameters, parameters active for one token), and those of the dense model.
    parameters: tuple[int, int]
    dense_parameters: int
    dtype: str
    difference: float | None = None


def upcycle(
    source: str,
    out: Path,
    options: UpcycleOptions,
    dtype: str = "auto",
    *,
    compare: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> Upcycled:
    """Write the sparse model of the dense one in ``source`` (folder, GGUF file or hub id) to the new folder ``out``.

    Holds the dense model and one file of weights at a time; ``compare`` loads the sparse one afterwards, in float32.
    ``dtype`` "auto": that of the dense model. Raises UsageError for what can't be upcycled, and RuntimeError where the
    models should compute the same and don't; then nothing is left in ``out``.
    """
    check_new_folder(out)
    quiet_loading()
    place = locate_model(source)
    config = read_config(place)
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    written = stored if dtype == "auto" else _DTYPES[dtype]
    sparse = on_meta(sparse_config(config, options, source))
    sparse.config.dtype = written
    policy = Policy(model=sparse, tokenizer=load_tokenizer(place))
    dense = load_model(place, torch.float32 if compare else stored, torch.device("cpu"))
    sparse.generation_config = dense.generation_config
    ids = policy.tokenizer.encode(PROBE, add_special_tokens=False)
    before = _logits(dense, ids) if compare else None
    made = Upcycled(
        folder=out,
        target=sparse.config.model_type,
        parameters=count_parameters(sparse),
        dense_parameters=count_parameters(dense)[0],
        dtype=str(written).removeprefix("torch."),
    )
    tensors = dict(dense.state_dict())
    del dense

    def fill(folder: Path) -> None:
        nonlocal made
        write_folder(policy, sparse_tensors(tensors, sparse, options, written), folder, SHARD_BYTES)
        tensors.clear()
        if before is not None:
            tell("comparing the two on one text")
            exact = not options.noise and stored == written
            made = replace(made, difference=_compared(before, folder, ids, exact=exact))
        card = _card(made, options, describe_source(source, place, config))
        (folder / "README.md").write_text(card, encoding="utf-8")

    atomic.write_folder(out, fill)
    return made


@torch.inference_mode()
def _logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """Float32 logits after each token, [T, V]."""
    logits: Tensor = model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
    return logits


def _compared(before: Tensor, folder: Path, ids: list[int], *, exact: bool) -> float:
    """The largest difference of two logits. Raises RuntimeError where it is more than rounding and ``exact``."""
    after = _logits(load_model(folder, torch.float32, torch.device("cpu")), ids)
    difference = float((after - before).abs().max())
    allowed = ROUNDING * float(before.abs().max())
    if exact and not difference <= allowed:
        raise RuntimeError(
            f"the sparse model does not compute what the dense one does: logits differ by {difference:.2g}, and "
            f"rounding is {allowed:.2g}. Nothing was written"
        )
    return difference


def describe_source(source: str, place: str, config: PretrainedConfig) -> str:
    """What a model was, for a card: so that it can be told from another of its name."""
    path = Path(place)
    if path.is_file():
        return f"`{source}`, sha256 `{atomic.file_sha256(path)}`"
    if path.is_dir():
        return f"`{source}`, sha256 over all of its files `{atomic.folder_sha256(path)}`"
    return f"`{source}` of the hub, revision `{config._commit_hash}`"


def _card(made: Upcycled, options: UpcycleOptions, source: str) -> str:
    total, active = made.parameters
    exact = "The experts are equal, so that it computes what the dense model does."
    moved = f"The experts differ by noise of {options.noise:g}, so that the router has a gradient."
    compared = (
        ""
        if made.difference is None
        else (f"| Logits against the dense model's | at most {made.difference:.2g} apart, on one text, in float32 |\n")
    )
    return f"""---
library_name: transformers
tags: [mixture-of-experts, sparse-upcycling, rlreason]
---
# A mixture of experts, upcycled from a dense model

Written by rlreason {__version__} (`rlreason upcycle`). Each feed-forward network was copied into {options.experts}
experts, of which a random router chooses {options.top_k} for each token (sparse upcycling, arXiv 2212.05055). Nothing
was trained. {moved if options.noise else exact} The licence is the dense model's.

| | |
|---|---|
| Dense model | {source} |
| Type | `{made.target}`, {made.dtype} |
| Experts, of a token | {options.experts}, {options.top_k} |
| Noise, router's standard deviation, seed | {options.noise:g}, {options.router_std:g}, {options.seed} |
| Parameters, active for a token | {total:,}, {active:,} (dense: {made.dense_parameters:,}) |
{compared}"""
