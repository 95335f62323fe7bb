"""`rlreason doctor numerics`: tokens drawn by the engine that a run would have, and scored as a trainer would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlreason.errors import UsageError

if TYPE_CHECKING:
    from rlreason.check import CheckedRecipe
    from rlreason.config import GrpoStage
    from rlreason.diagnose.numerics import Band
    from rlreason.policy.policies import Policy
    from rlreason.types import Completion, Group, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericsRequest:
    """What is asked. ``data``: a file or named set whose problems are prompts; None: arithmetic. ``updates``: so many
    steps of GRPO at ``lr`` afterwards, on other draws of the same weights, to see what staleness does."""

    model: str
    data: str | None = None
    engine: str = "auto"
    dtype: str = "auto"
    problems: int = 16
    samples: int = 4
    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    updates: int = 0
    lr: float = 1e-6
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was found. Example: ``Measured(bands=[whole, shallow], whole_vocabulary=None, later=[one, two])``."""

    #: All tokens, then those of each depth.
    bands: Sequence[Band]
    #: Of truncated draws: as a trainer that takes no notice of the cut has it.
    whole_vocabulary: Band | None
    #: After each update.
    later: Sequence[Band]


def numerics(request: NumericsRequest) -> list[str]:
    """Draw, score, and say what differs, as lines. Raises UsageError for a model or an engine that is not there."""
    from rlreason.config import GrpoStage
    from rlreason.job import open_samplers
    from rlreason.policy.loading import read_config
    from rlreason.policy.model import default_device, quiet_loading, resolve_dtype
    from rlreason.policy.policies import PolicySource
    from rlreason.routing import experts_in
    from rlreason.sampler.groups import draw_groups
    from rlreason.types import SamplingParams

    quiet_loading()
    experts = bool(experts_in(read_config(request.model).to_dict()))
    checked, device = _recipe(request, experts), default_device()
    policy = PolicySource(path=request.model).load(resolve_dtype(checked.recipe.policy.dtype, device), device)
    problems = checked.data.of("numerics").train(0, request.problems * (1 + request.updates))
    checked = _with_room(checked, policy, problems, request.max_tokens)
    truncated = request.top_p < 1.0 or request.top_k > 0
    params = SamplingParams(
        samples_per_problem=request.samples if not request.updates else max(2, request.samples),
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        max_tokens=request.max_tokens,
        seed=request.seed,
        stream="numerics",
        record="ids" if truncated else "",
    )
    with open_samplers(checked) as samplers:
        groups = list(draw_groups(samplers.open(policy), problems, params))
        engine = samplers.describe()
    (stage,) = checked.recipe.stage
    assert isinstance(stage, GrpoStage)
    try:
        found = _measured(policy, groups, stage, request)
    except ValueError as error:
        raise UsageError(f"{request.model}: {error}") from error
    cut = f", top_p {request.top_p:g}, top_k {request.top_k}" if truncated else ""
    first = f"{request.model}: {engine}, {policy.dtype}, temperature {request.temperature:g}{cut}"
    return [first, *said(found, experts)]


def _recipe(request: NumericsRequest, experts: bool) -> CheckedRecipe:
    """The run that would draw like this, of one stage."""
    from pydantic import ValidationError

    from rlreason.check import check
    from rlreason.config import Recipe
    from rlreason.config.errors import explain

    stage = {
        "kind": "grpo",
        "name": "numerics",
        "steps": max(1, request.updates),
        "problems_per_step": request.problems,
        "samples_per_problem": max(2, request.samples),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "report_experts": experts,
        "optimizer": {"lr": request.lr},
    }
    tables = {
        "name": "numerics",
        "seed": request.seed,
        "policy": {"path": request.model, "dtype": request.dtype},
        "data": {"train": request.data or "arithmetic"},
        "sampler": {"engine": request.engine},
        "stage": [stage],
    }
    try:
        return check(Recipe.model_validate(tables), Path.cwd())
    except ValidationError as error:
        raise UsageError(f"rlreason doctor numerics: {explain(error, tables, Recipe)}") from error


def _with_room(checked: CheckedRecipe, policy: Policy, problems: Sequence[Problem], max_tokens: int) -> CheckedRecipe:
    """With engines that hold what is asked, and not the model's longest sequence, which may be all the memory."""
    render, tokenizer = checked.prompt_format.render, policy.tokenizer
    longest = max(len(render(problem, tokenizer).ids) for problem in problems) + max_tokens
    positions = policy.architecture.get("max_position_embeddings")
    if isinstance(positions, int) and positions <= longest:
        return checked
    sampler = checked.recipe.sampler.model_copy(update={"max_length": longest})
    return replace(checked, recipe=checked.recipe.model_copy(update={"sampler": sampler}))


def _measured(policy: Policy, groups: Sequence[Group], stage: GrpoStage, request: NumericsRequest) -> Measured:
    """The first ``request.problems`` groups are measured, and the others learned from: whose completion is the shorter
    wins, so that there is something to learn in any model. Raises ValueError where no completion can be scored."""
    from rlreason.diagnose.numerics import measure

    completions = [one for group in groups[: request.problems] for one in group.completions_G]
    bands = measure(policy.model, completions, request.temperature)
    without = None
    if completions[0].sampled_from is not None:
        blind = [replace(one, sampled_from=None) for one in completions]
        without = measure(policy.model, blind, request.temperature)[0]
    later = _later(policy, groups[request.problems :], stage, completions) if request.updates else []
    return Measured(bands=bands, whole_vocabulary=without, later=later)


def _later(policy: Policy, groups: Sequence[Group], stage: GrpoStage, completions: Sequence[Completion]) -> list[Band]:
    """The whole of ``completions`` after each of ``stage.steps`` updates."""
    from rlreason.diagnose.numerics import measure
    from rlreason.policy.model import default_device, resolve_dtype
    from rlreason.stages.grpo import earn, learn
    from rlreason.trainer.local import LocalTrainer
    from rlreason.trainer.options import TrainerOptions
    from rlreason.types import RewardResult, Verdict

    compute_dtype = resolve_dtype(policy.dtype, default_device())
    options = TrainerOptions(optimizer=stage.optimizer, total_steps=stage.steps, compute_dtype=compute_dtype,
                             micro_batch_tokens=stage.micro_batch)  # fmt: skip
    trainer, found = LocalTrainer(policy, options), []
    for step in range(stage.steps):
        own = [
            replace(
                group,
                rewards_G=tuple(
                    RewardResult(score=-float(len(one.token_ids)), verdict=Verdict.CORRECT)
                    for one in group.completions_G
                ),
            )
            for group in groups[step * stage.problems_per_step :][: stage.problems_per_step]
        ]
        learn(step, own, earn(own, stage, trainer), stage, trainer, lambda: None)
        found.append(measure(trainer.model, completions, stage.temperature)[0])
    return found


def said(found: Measured, experts: bool) -> list[str]:
    """The table and what it means."""
    from rlreason.diagnose.numerics import HEALTHY_DENSE, HEALTHY_EXPERTS, is_healthy

    bands = found.bands
    lines = [f"{'depth':>17} {'tokens':>8} {'v1':>10} {'± error':>9} {'v2':>9} {'largest':>9} {'off by 10 %':>12}"]
    if bands[0].agree is not None:
        lines[0] += f" {'same experts':>13}"
    rows = [("all", bands[0]), *((_depth(one), one) for one in bands[1:])]
    if found.whole_vocabulary is not None:
        rows.append(("cut not replayed", found.whole_vocabulary))
    rows += [(f"after {at} update{'s' * (at > 1)}", one) for at, one in enumerate(found.later, 1)]
    for name, one in rows:
        line = f"{name:>17} {one.tokens:>8} {one.v1:>10.2e} {one.error:>9.1e} {one.v2:>9.2e} {one.largest:>9.2e}"
        lines.append(line + f" {one.off:>12.1%}" + ("" if one.agree is None else f" {one.agree:>13.1%}"))
    limit, kind = (HEALTHY_EXPERTS, "a mixture of experts") if experts else (HEALTHY_DENSE, "a dense model")
    ill = [one for one in bands if not is_healthy(one, experts=experts)]
    band = f"v1 and v2 up to {limit:g} nats a token are healthy for {kind} (tinker-cookbook)"
    lines.append(f"above the healthy band: {band}; docs/mismatch.md says what to do" if ill else f"healthy: {band}")
    return lines


def _depth(one: Band) -> str:
    return f"{one.first} and more" if one.end is None else f"{one.first} to {one.end - 1}"
