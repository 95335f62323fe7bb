"""What `rlreason plan` says of a recipe's problems: the sets, what was left out, and the first prompt in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlreason.check import CheckedRecipe
from rlreason.config import EvalStage, GrpoStage, OpdStage, Recipe, RejectStage, SftStage, Stage
from rlreason.contamination import contamination_of_run
from rlreason.data.prompts import PLAIN_CHAT_TEMPLATE, Tokenizer
from rlreason.data.source import SourcePart
from rlreason.errors import UsageError
from rlreason.stages.references import References

#: Characters of the first prompt that are shown.
SHOWN = 600

#: Stages that are given training problems.
Trains = SftStage | GrpoStage | RejectStage | OpdStage


class PlainTemplate:
    """Renders as the tokenizers do that are made on the spot (``policy.tokenizer``), and encodes nothing."""

    eos_token_id = 0
    added_tokens_decoder: Mapping[int, Any] = {}

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, str]], *, add_generation_prompt: bool, tokenize: bool, **kwargs: Any
    ) -> str:
        """The text of ``conversation``."""
        template = ImmutableSandboxedEnvironment().from_string(PLAIN_CHAT_TEMPLATE)
        return template.render(
            messages=conversation, add_generation_prompt=add_generation_prompt, eos_token="", **kwargs
        )

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        """No ids: only the text is shown."""
        return ()


def check_alphabet(checked: CheckedRecipe) -> None:
    """Raise UsageError, as a run would, for a model with a tokenizer of characters where the data has no fixed
    alphabet."""
    recipe, references = checked.recipe, References(checked.recipe)
    if checked.data.alphabet is not None:
        return
    for stage in recipe.stage:
        names = stage.models if isinstance(stage, EvalStage) else (references.model_of(stage),)
        for table in (references.config(name) for name in names if name not in recipe.endpoint):
            if table.path is None and table.tokenizer.kind == "characters":
                raise UsageError(
                    f'stage {stage.name!r}: a model built from nothing with tokenizer.kind = "characters" needs a '
                    'procedural task with a fixed alphabet; use kind = "bpe" for data from files'
                )


def data_lines(checked: CheckedRecipe, base: Path | None = None) -> list[str]:
    """The sets that are trained on and measured, suites whose files are here (``base``: the recipe's folder) and what
    they have in common with what is trained on, and the first prompt as the model reads it."""
    recipe, data = checked.recipe, checked.data
    lines = [f"  data     {name}: {_part(part)}" for name, part in data.parts().items()]
    styles = {table.answer_style for table in recipe.data.sets.values()}
    if recipe.data.train not in recipe.data.sets and recipe.data.train is not None:
        styles.add(recipe.data.answer_style)
    lines.append(f"           answers in {' and '.join(sorted(styles))}")
    lines += [f"  WARNING  {one}" for one in (*checked.warnings, *data.overlaps())]
    lines += [f"  {'WARNING ' if one.matches else 'suite   '} {one}" for one in contamination_of_run(data, base)]
    text = first_prompt(checked)
    lines += [] if text is None else [f"  prompt   {text}"]
    return lines


def _part(part: SourcePart) -> str:
    left_out = part.left_out
    said = [part.origin, "without end" if part.size is None else f"{part.size:,} problems"]
    if left_out.bad_rows:
        said.append(f"{left_out.bad_rows} bad rows left out, the first: {left_out.first_bad}")
    if left_out.outside:
        said.append(f"{left_out.outside} left out for their pass rate")
    return ", ".join(said)


def first_prompt(checked: CheckedRecipe) -> str | None:
    """The first prompt of the first stage, as the chat template of the policy writes it, in one line.

    None where the policy is not on this machine, or transformers is not installed. Raises UsageError where the template
    can't render it.
    """
    tokenizer = _tokenizer(checked.recipe)
    if tokenizer is None:
        return None
    stage = next((one for one in checked.recipe.stage if isinstance(one, Trains)), None)
    source = checked.source if stage is None else checked.data.of(stage.name)
    (problem,) = source.heldout(1)[:1] if stage is None else source.train(0, 1)
    text = checked.prompt_format.render(problem, tokenizer).text
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def _tokenizer(recipe: Recipe) -> Tokenizer | None:
    if recipe.policy.path is None:
        return PlainTemplate()
    if not Path(recipe.policy.path).exists() or find_spec("transformers") is None or find_spec("torch") is None:
        return None
    from rlreason.policy.loading import load_tokenizer

    found: Tokenizer = load_tokenizer(recipe.policy.path)
    return found


def stage_data(stage: Stage, checked: CheckedRecipe) -> list[str]:
    """What a stage trains on or measures, where it says so itself; how often it asks a problem; its curriculum."""
    lines = []
    if isinstance(stage, EvalStage):
        return [f"measured on {stage.data}"] if stage.data is not None else []
    if isinstance(stage, Trains) and stage.data is not None:
        mix = checked.recipe.data.shares(stage.data)
        total = sum(mix.values())
        lines.append("on " + " + ".join(f"{name} ({share / total:.1%})" for name, share in mix.items()))
    lines += _epochs(stage, checked)
    if isinstance(stage, GrpoStage) and stage.curriculum is not None:
        lines.append(
            f"a problem whose completions were all right {stage.curriculum.skip_solved_after} times in a row is passed "
            f"over for {stage.curriculum.retry_after} steps"
        )
    return lines


def _epochs(stage: Stage, checked: CheckedRecipe) -> list[str]:
    """How often the problems of each set of rows that the stage draws from are asked."""
    if isinstance(stage, RejectStage):
        asked = stage.problems
    elif isinstance(stage, (GrpoStage, OpdStage)):
        asked = stage.steps * stage.problems_per_step
    else:
        return []
    mix = checked.recipe.data.shares(stage.data)
    said = []
    for name, share in mix.items():
        supply = checked.data.trained.get(name)
        if supply is not None and supply.size:
            wanted = asked * share / sum(mix.values())
            said.append(f"{wanted:,.0f} of {supply.size:,} ({wanted / supply.size:.2g} epochs)")
    return [f"problems drawn: {', '.join(said)}"] if said else []
