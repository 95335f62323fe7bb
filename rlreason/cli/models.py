"""`rlreason upcycle`, `rlreason consolidate`: what makes a model of something else without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlreason.errors import UsageError
from rlreason.terminal import say

modelling = typer.Typer()
_DTYPES = ("auto", "float32", "bfloat16")


@modelling.command()
def upcycle(  # noqa: PLR0913, PLR0917  every option of the command
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The dense one: a folder, a .gguf file or a hub id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder of the mixture of experts.")],
    experts: Annotated[int, typer.Option(help="Copies of each feed-forward network.")] = 4,
    top_k: Annotated[int, typer.Option(help="Experts of a token.")] = 2,
    noise: Annotated[float, typer.Option(help="Standard deviation added to each expert; 0: computes the same.")] = 1e-3,
    router_std: Annotated[float, typer.Option(help="Standard deviation of the router's weights.")] = 0.02,
    seed: Annotated[int, typer.Option(min=0, help="Of router and noise.")] = 0,
    to: Annotated[str | None, typer.Option(help="Type of the result; default: the family's exact one.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (the dense model's), float32 or bfloat16.")] = "auto",
    compare: Annotated[bool, typer.Option(help="Compare the logits of the two on one text.")] = True,
) -> None:
    """Make a mixture of experts of a dense model: sparse upcycling (arXiv 2212.05055).

    Llama and Mistral become Mixtral, Qwen2 becomes Qwen2-MoE, Qwen3 Qwen3-MoE. docs/upcycle.md says what to do next.
    """
    from rlreason.policy.upcycling import UpcycleOptions
    from rlreason.upcycle import upcycle as make

    if dtype not in _DTYPES:
        raise UsageError(f"--dtype {dtype}: one of {', '.join(_DTYPES)}")
    options = UpcycleOptions(experts=experts, top_k=top_k, noise=noise, router_std=router_std, seed=seed, target=to)
    made = make(model, out, options, dtype, compare=compare, tell=say)
    total, active = made.parameters
    say(
        f"wrote {out}: {made.target}, {made.dtype}, {total:,} parameters, {active:,} active for a token "
        f"(dense: {made.dense_parameters:,})"
    )
    if made.difference is not None:
        say(f"logits at most {made.difference:.2g} from the dense model's, on one text, in float32")
    if not noise:
        say("noise 0: the experts are equal, and the router has no gradient until training has made them differ")


@modelling.command()
def consolidate(
    state: Annotated[Path, typer.Argument(metavar="STATE", help="RUN/stages/NN-NAME/state/step-N.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder of the model or the adapter.")],
    merge: Annotated[bool, typer.Option("--merge", help="Of LoRA: the whole model with the adapter added.")] = False,
    base: Annotated[str | None, typer.Option(help="Of LoRA: its base, where it was moved.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (as the run's checkpoints), float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Write a training state as a Hugging Face folder, one tensor at a time; of LoRA as an adapter in peft's format.

    The state may be of one process or of any number of ranks: docs/trainer.md.
    """
    from rlreason.consolidate import ConsolidateOptions
    from rlreason.consolidate import consolidate as write

    if dtype not in (*_DTYPES, "float16"):
        raise UsageError(f"--dtype {dtype}: one of {', '.join((*_DTYPES, 'float16'))}")
    made = write(state, out, ConsolidateOptions(dtype=dtype, merge=merge, base=base))
    wrote = f"{made.ranks} ranks" if made.ranks else "one process"
    say(f"wrote {out}: {made.what}, {made.dtype}, {made.parameters:,} numbers, of a state that {wrote} wrote")
