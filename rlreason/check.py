"""Everything about a recipe that can be wrong and needs no model to find out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlreason import extensions
from rlreason.audit_gate import required_audits
from rlreason.config import (
    DistillStage,
    EvalStage,
    GrpoStage,
    OpdStage,
    Recipe,
    RejectStage,
    RewardTable,
    SftStage,
    TrainingStage,
)
from rlreason.data.prompts import PromptFormat
from rlreason.data.run_data import RunData
from rlreason.data.source import ProblemSource
from rlreason.data.supplies import TaskSupply
from rlreason.diagnose.health import users_rules
from rlreason.errors import UsageError
from rlreason.inputs import RecipeFiles, absolute_recipe
from rlreason.plan.lengths import check_room
from rlreason.recipe_data import RecipeData, check_overlap, prompt_format
from rlreason.rewards.mix import RewardMix
from rlreason.rewards.registry import resolve_verifier
from rlreason.run import manifest
from rlreason.run.inputs import InputFile, KnownInputs
from rlreason.run.manifest import AuditEntry
from rlreason.stages.epochs import demonstrations_of
from rlreason.stages.opd_routes import check_names, check_routes, check_start
from rlreason.traces.similar import Benchmarks
from rlreason.types import Completion, Problem, RewardResult, Verdict

#: Gold answers of each set that are tried on their verifier.
GOLDS = 8
#: Verifiers that run here: none of them runs a program.
PURE_VERIFIERS = ("math", "countdown")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRecipe:
    """A recipe whose rewards resolve and whose data could be read."""

    #: With the data that was taken, and every file and folder by its absolute path.
    recipe: Recipe
    mix: RewardMix
    #: Of stages that have rewards of their own, by the stage's name.
    stage_mixes: Mapping[str, RewardMix]
    data: RunData
    prompt_format: PromptFormat
    #: The files that it was read from.
    inputs: tuple[InputFile, ...]
    #: Of its rewards, where it requires them.
    audits: tuple[AuditEntry, ...] = ()
    #: What a person should hear before the run: settings that contradict each other, and may be meant.
    warnings: tuple[str, ...] = ()

    @property
    def source(self) -> ProblemSource:
        """The problems of the first stage: of all of them, where the recipe names one set."""
        return self.data.of(self.recipe.stage[0].name)


def check(recipe: Recipe, base: Path, known: KnownInputs | None = None) -> CheckedRecipe:
    """Resolve rewards and read the data. ``base`` is the recipe's folder; ``known`` are the inputs of the run that is
    gone on with or followed; without, those of a recipe out of a run directory stand in for files that are gone.
    Raises UsageError on the first fault.
    """
    files = RecipeFiles(base=base, known=known or _copies_in(base))
    recipe = absolute_recipe(recipe, files)
    check_room(recipe)
    mix, stage_mixes = reward_mix(recipe, files), _stage_mixes(recipe, files)
    _check_watchers(recipe)
    reader = RecipeData(recipe=recipe, base=base, files=files)
    data = reader.read()
    _check_needs(recipe, data)
    if known is None:  # a run that is gone on with may have filtered already
        _check_benchmarks(recipe)
        _check_teachers(recipe, data)
    if any(not isinstance(stage, EvalStage) for stage in recipe.stage):
        check_overlap(data, allowed=recipe.data.allow_overlap)
    _check_golds(recipe, data)
    # A run that is gone on with rests on the audits in its manifest, unless its code was changed.
    mixes = {"reward": mix, **{f"stage.{name}.reward": one for name, one in stage_mixes.items()}}
    audited = known is None or known.accept
    audits = required_audits(recipe, mixes, files, _verifiers(data)) if audited else []
    taken = recipe.model_copy(update={"data": reader.taken()})
    used = [name for supply in data.supplies().values() for name in supply.origins]
    read = [files.data_files[name] for name in used if name in files.data_files]
    inputs = tuple(dict.fromkeys((*read, *files.traces, *files.rewards.values())))
    form = prompt_format(taken.data)
    return CheckedRecipe(
        recipe=taken,
        mix=mix,
        stage_mixes=stage_mixes,
        data=data,
        prompt_format=form,
        inputs=inputs,
        audits=tuple(audits),
        warnings=tuple(_unpaid_forms(recipe, data, mixes, form)),
    )


def _unpaid_forms(recipe: Recipe, data: RunData, mixes: Mapping[str, RewardMix], form: PromptFormat) -> list[str]:
    """A reward ``format`` that pays for another form than the problems' ``answer_style``, each place once."""
    found: dict[str, None] = {}
    for name, supply in data.trained.items():
        for stage in _scoring(recipe, name):
            if isinstance(stage, RejectStage) or (isinstance(stage, OpdStage) and not stage.reward_weight):
                continue  # its verdicts alone count
            place = f"stage.{stage.name}.reward" if recipe.has_own_reward(stage) else "reward"
            part = next((one for one in mixes[place].parts if one.name == "format"), None)
            if part is None:
                continue
            paid = dict(part.options).get("style", "tags")
            asked = next((form.of(one).style for one in supply.specimens() if part.applies(one)), paid)
            if asked != paid:
                table = f"data.{name}" if name in recipe.data.sets else "data"
                found[
                    f"{place}.format pays for {paid!r}, and the answers of {table} are in {asked!r} "
                    f"({table}.answer_style): the asked form is paid nothing. Make the two one, or say format.sources"
                ] = None
    return list(found)


def _check_benchmarks(recipe: Recipe) -> None:
    """The benchmarks that traces must not hold can be read; else a reject stage would end behind its last draw."""
    for stage in recipe.stage:
        if isinstance(stage, RejectStage) and stage.filters is not None:
            wanted = stage.filters.decontaminate
            try:
                Benchmarks.read(wanted.against, wanted.n, Path())
            except UsageError as error:
                raise UsageError(f"stage {stage.name!r}: filters.{error}") from error


def _check_teachers(recipe: Recipe, data: RunData) -> None:
    """Every problem of an opd stage has its teacher, and no teacher is the start; else a run would end, or learn
    nothing, once its teachers are trained."""
    for stage in recipe.stage:
        if isinstance(stage, OpdStage):
            check_start(stage, recipe)
            check_routes(stage, data.of(stage.name))
            check_names(stage, data.of(stage.name))


def _verifiers(data: RunData) -> list[str]:
    """Of all problems, each once."""
    every = (problem.verifier for supply in data.supplies().values() for problem in supply.specimens())
    return list(dict.fromkeys(every))


def _copies_in(base: Path) -> KnownInputs | None:
    """The copies that a run directory has of its inputs; None where ``base`` is none."""
    path = base / "manifest.json"
    if not path.is_file():
        return None
    return KnownInputs(root=base, entries=tuple(manifest.read(path).inputs), must_match=False)


def reward_mix(recipe: Recipe, files: RecipeFiles) -> RewardMix:
    """The recipe's rewards by name. Raises UsageError for an unknown reward, option or verifier."""
    mix = _mix(recipe.reward, files, "[reward]")
    for place, table in (("data", recipe.data), *((f"data.{name}", one) for name, one in recipe.data.sets.items())):
        try:
            resolve_verifier(files.loaded(table.verifier))
        except ValueError as error:
            raise UsageError(f"{place}.verifier: {error}") from error
    return mix


def _mix(table: RewardTable, files: RecipeFiles, place: str) -> RewardMix:
    try:
        return RewardMix.from_table(table, {name: files.loaded(name) for name in table})
    except ValueError as error:
        raise UsageError(f"{place} {error}") from error


def _stage_mixes(recipe: Recipe, files: RecipeFiles) -> dict[str, RewardMix]:
    own = [one for one in recipe.stage if recipe.has_own_reward(one)]
    return {one.name: _mix(recipe.reward_of(one), files, f"stage.{one.name}.reward:") for one in own}


def _check_watchers(recipe: Recipe) -> None:
    """Health rules and trackers of the user's own can be imported."""
    users_rules(recipe.health)
    for name in recipe.logging.trackers:
        if extensions.is_code(name) or name in extensions.offered(extensions.TRACKERS):
            extensions.load(extensions.TRACKERS, name, "logging.trackers")


def _check_needs(recipe: Recipe, data: RunData) -> None:
    """Each stage finds in the data what it will ask for."""
    for stage in recipe.stage:
        source = data.of(stage.name)
        if isinstance(stage, SftStage):
            source.demonstrations(0, 1)
            demonstrations_of(stage, source)
            if stage.demonstrations is not None:
                source.check_distinct(stage.demonstrations)
        if isinstance(stage, DistillStage) and stage.general is not None:
            source.demonstrations(0, 1)
        if isinstance(stage, (GrpoStage, RejectStage, OpdStage)):
            source.train(0, 1)
        if isinstance(stage, GrpoStage) and stage.curriculum is not None and source.train_size is None:
            raise UsageError(
                f"stage.{stage.name}.curriculum: {source.train_origin} never asks the same problem again, so there is "
                "nothing to pass over; a curriculum needs one set of rows"
            )
        if isinstance(stage, EvalStage):
            source.heldout(stage.problems)
        elif isinstance(stage, TrainingStage) and stage.eval_every:
            source.heldout(stage.eval_problems)


def _check_golds(recipe: Recipe, data: RunData) -> None:
    """The first gold answers of what is scored can be used by their verifier: not every answer would be BROKEN."""
    scored = any(isinstance(stage, (GrpoStage, RejectStage, OpdStage)) for stage in recipe.stage)
    supplies = data.supplies() if scored else data.measured
    for name, supply in supplies.items():
        if isinstance(supply, TaskSupply):
            continue
        bare = [problem.id for problem in supply.specimens() if problem.reference == ""]
        if bare and (name in data.measured or _scoring(recipe, name)):
            raise UsageError(
                f"{supply.origin}: {len(bare)} of {supply.size} problems have no gold answer, such as {bare[0]!r}, and "
                "would be scored; name its column in data.columns.answer"
            )
        problems = [problem for problem in supply.specimens()[:GOLDS] if problem.reference != ""]
        broken = [_broken(problem) for problem in problems]
        if problems and all(broken):
            raise UsageError(
                f"{supply.origin}: the verifier {problems[0].verifier!r} can use none of the first {len(problems)} "
                f"gold answers; of problem {problems[0].id!r}: {broken[0]}. Correct data.columns.answer, "
                "data.answer_after or data.verifier"
            )


def _scoring(recipe: Recipe, name: str) -> list[GrpoStage | RejectStage | OpdStage]:
    """The stages that draw from the training set ``name`` and score the answers."""
    drawn = (one for one in recipe.stage if isinstance(one, (GrpoStage, RejectStage, OpdStage)))
    return [stage for stage in drawn if name in recipe.data.shares(stage.data)]


def _broken(problem: Problem) -> str | None:
    """Why the verifier can't use the problem's gold answer; None where it can, or would run programs to say so."""
    if problem.verifier not in PURE_VERIFIERS:
        return None
    gold = problem.reference if isinstance(problem.reference, str) else "0"
    text = f"<answer>{gold}</answer> \\boxed{{{gold}}}"
    ids = np.zeros(1, dtype=np.int32)
    probe = Completion(prompt_ids=ids, token_ids=ids, sampler_logprobs=None, text=text, finish_reason="stop")
    result = resolve_verifier(problem.verifier).function(problem, probe)
    if isinstance(result, RewardResult) and result.verdict is Verdict.BROKEN:
        return result.detail or "it can't be read"
    return None
