"""What can be known of a run's models before its first stage: that they are there, whole and supported, that they fit
their tokenizers, the engine and each other, and that they could be saved again.

No weight is read: models are inspected on the meta device. What a run would stumble over after hours is said here.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from rlreason.config import (
    DistillStage,
    EvalStage,
    GrpoStage,
    OpdStage,
    PolicyConfig,
    Recipe,
    RejectStage,
    Stage,
    stage_of,
)
from rlreason.data.prompts import PromptFormat
from rlreason.data.run_data import RunData
from rlreason.data.supplies import Key, key_of
from rlreason.errors import UsageError
from rlreason.policy.loading import check_shape, inspect_model, load_tokenizer
from rlreason.policy.model import meta_model
from rlreason.policy.policies import Policy, fresh_tokenizer
from rlreason.policy.predictors import predictors_left_out
from rlreason.policy.saving import save_without_weights
from rlreason.policy.support import longest_sequence
from rlreason.routing import check_experts, expert_count
from rlreason.sampler.open import installed, why_not_vllm
from rlreason.stages.expert_keys import check_expert_keys, check_some_experts
from rlreason.stages.lengths import LengthCheck, Overlong
from rlreason.stages.references import TABLES, References
from rlreason.stages.vocabularies import shared_words
from rlreason.traces.rows import KEPT, read_learnt
from rlreason.trainer.balance import router_coefficient
from rlreason.trainer.parallel import check_division

#: Before the path of a teacher that is no model of the recipe.
FOLDER = "path:"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunModels:
    """What ``check_models`` looks at: a recipe with its problems, and the stages that are done, with their folders."""

    recipe: Recipe
    data: RunData
    prompt_format: PromptFormat
    #: Stage -> its checkpoint, or another folder where it trains nothing.
    done: Mapping[str, Path]

    def uses(self) -> Iterator[_Use]:
        """Which models the stages need."""
        references = References(self.recipe)
        for stage in self.recipe.stage:
            done = stage.name in self.done
            names = stage.models if isinstance(stage, EvalStage) else (references.model_of(stage),)
            trains = not isinstance(stage, EvalStage | RejectStage)
            for name in names:
                if name not in self.recipe.endpoint:
                    yield _Use(stage=stage, origin=self._origin(name, references), done=done, in_trainer=trains)
            if isinstance(stage, DistillStage) and stage.teacher_kl > 0:
                teacher = references.model_of(references.traces_of(stage))
                origin = self._origin(teacher, references)
                yield _Use(stage=stage, origin=origin, teaches=True, done=done, in_trainer=True)
            for taught in stage.teachers(self.recipe.teacher) if isinstance(stage, OpdStage) else ():
                one = self.recipe.teacher[taught]
                origin = self._origin(one.model, references) if one.model is not None else f"{FOLDER}{one.path}"
                inside = one.where == "trainer"
                beside = int(one.where == "vllm")  # vLLM draws a token behind whatever it scores
                yield _Use(stage=stage, origin=origin, teaches=True, done=done, in_trainer=inside, beside=beside)

    def _origin(self, name: str, references: References) -> str:
        while stage_of(name) not in {*TABLES, *self.done}:
            name = references.model_of(references.stage(name))
        return stage_of(name)  # any checkpoint of a stage has the shape and the tokenizer of the others


@dataclass(frozen=True, slots=True, kw_only=True)
class _Use:
    """A stage, and a model that it needs. ``origin``: "policy", "student", or a stage whose checkpoint is there."""

    stage: Stage
    origin: str
    #: Only its distribution is used.
    teaches: bool = False
    #: The stage is done: only which rows it left out counts.
    done: bool = False
    #: The trainer holds it.
    in_trainer: bool = False
    #: Positions that it needs beside a row that it scores.
    beside: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inspected:
    """A model on the meta device with its tokenizer. ``place`` names it in messages."""

    policy: Policy
    place: str
    longest: int | None


def check_models(run: RunModels, tell: Callable[[str], None]) -> RunData:
    """The problems to run with: those of ``run`` without the rows that are too long, where the recipe leaves them out.

    Raises UsageError for the first thing that would end or spoil a stage, naming model, key or row and the fix.
    """
    for stage in run.recipe.stage:
        _check_traces(stage, done=stage.name in run.done)
    inspected: dict[str, _Inspected] = {}
    lengths = LengthCheck(run.recipe, run.prompt_format)
    dropping = run.recipe.data.overlong_prompts == "drop"
    dropped: dict[Key, Overlong] = {}
    uses = list(run.uses())
    for use in uses:
        if use.done and not dropping:
            continue
        if use.origin not in inspected:
            inspected[use.origin] = _inspect(run, use.origin)
            _say_left_out(inspected[use.origin], tell)
        model = inspected[use.origin]
        if not use.done and use.in_trainer:
            _check_cut(run.recipe, use.stage, model)
        if not use.teaches:
            _check_engine(run.recipe, use.stage, model)
            check_expert_keys(run.recipe, use.stage, model.policy.model, model.place)
        elif use.beside and not use.done:
            _check_teacher_engine(run.recipe, use.stage, model)
        for found in _overlong(run, use, model, lengths):
            if not dropping:
                raise UsageError(
                    f"stage {use.stage.name!r}: problem {found.problem.id!r} {found.reason}; change max_tokens or "
                    'sampler.max_length, or leave such rows out by data.overlong_prompts = "drop"'
                )
            dropped[key_of(found.problem)] = found
    # What is done may have been the one with experts.
    trained = [] if run.done else [inspected[use.origin].policy.model for use in uses if use.in_trainer]
    check_some_experts(run.recipe, trained)
    for use in uses:
        if use.teaches and not use.done:
            (student,) = (one.origin for one in uses if one.stage is use.stage and not one.teaches)
            check_vocabulary(inspected[use.origin].policy, inspected[student].policy, use.stage.name)
    if not dropped:
        return run.data
    first = next(iter(dropped.values()))
    tell(
        f"{len(dropped)} problem(s) left out as too long (data.overlong_prompts): "
        f"{first.problem.id!r} {first.reason}{', …' if len(dropped) > 1 else ''}"
    )
    return run.data.without(dropped.keys())


def _check_traces(stage: Stage, *, done: bool) -> None:
    if isinstance(stage, DistillStage) and stage.trace_set is not None and not done:
        rows = Path(stage.trace_set) / KEPT
        if not rows.is_file():
            raise UsageError(
                f"stage.{stage.name}.trace_set: there is no {rows}: name the folder of a reject stage, such as "
                "runs/r1/stages/03-traces, or of `rlreason traces import`"
            )
        try:
            for _ in read_learnt(rows):  # all of them: an earlier stage may take days
                pass
        except UsageError as error:
            raise UsageError(f"stage.{stage.name}.trace_set: {error}") from error


def _overlong(run: RunModels, use: _Use, model: _Inspected, lengths: LengthCheck) -> Iterator[Overlong]:
    """Problems of the stage that don't fit the model."""
    source = run.data.of(use.stage.name)
    if not use.teaches:
        yield from lengths.overlong(use.stage, source, model.policy, model.longest)
    elif isinstance(use.stage, OpdStage) and model.longest is not None:
        yield from lengths.untaught(use.stage, source, model.policy, model.longest - use.beside)


def _inspect(run: RunModels, origin: str) -> _Inspected:
    recipe = run.recipe
    config = {"policy": recipe.policy, "student": recipe.student}[origin] if origin in TABLES else None
    path = config.path if config is not None else _folder_of(run, origin)
    place = f"[{origin}]" if path is None else path
    if path is not None:
        policy = Policy(model=inspect_model(path), tokenizer=load_tokenizer(path))
        if config is not None:
            check_shape(policy.model.config, config, path)
    else:
        assert config is not None
        policy = _fresh(run, config, place)
    check_experts(policy.model, place)
    if config is not None:
        router_coefficient(recipe.trainer.router_aux_loss, config, policy.model)
    words = len(policy.tokenizer)
    if words > policy.vocabulary:
        raise UsageError(f"{place}: its tokenizer has {words} tokens, and its head only {policy.vocabulary} rows")
    assert policy.stop_ids, "a tokenizer without any is refused"
    _try_attention(policy)
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_without_weights(policy.model, policy.tokenizer, Path(folder))
        except UsageError as error:
            raise UsageError(f"{place}: {error}") from error
    return _Inspected(policy=policy, place=place, longest=longest_sequence(policy.model.config))


def _say_left_out(model: _Inspected, tell: Callable[[str], None]) -> None:
    left_out = predictors_left_out(model.policy.model.name_or_path, model.policy.model)
    if left_out:
        tell(
            f"{left_out} tensors of {model.place} are left out (multi-token prediction): neither trained nor saved, "
            "and what is saved says that it has none"
        )


def _folder_of(run: RunModels, origin: str) -> str:
    return origin.removeprefix(FOLDER) if origin.startswith(FOLDER) else str(run.done[origin])


def _fresh(run: RunModels, config: PolicyConfig, place: str) -> Policy:
    try:
        tokenizer = fresh_tokenizer(config, run.data.alphabet, run.data.texts())
        return Policy(model=meta_model(config, tokenizer), tokenizer=tokenizer)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error


def _try_attention(policy: Policy) -> None:
    """Run two tokens through shapes alone, so that a layer's attention is asked what it wants; UsageError passes.

    Kernels of experts can't run without numbers: those models are tried when they are loaded.
    """
    model = policy.model
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros((1, 2), dtype=torch.long, device="meta"), use_cache=False)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        if isinstance(error, UsageError):
            raise


def _check_cut(recipe: Recipe, stage: Stage, model: _Inspected) -> None:
    """Its layers and experts can be divided as the ranks want them. A dense model has no experts to spread."""
    trainer, policy = recipe.trainer, model.policy.model
    if trainer.ranks:
        try:
            check_division(policy, trainer.tensor_parallel, trainer.expert_parallel if expert_count(policy) else 1)
        except UsageError as error:
            raise UsageError(f"stage {stage.name!r}: {error}") from error


def _check_engine(recipe: Recipe, stage: Stage, model: _Inspected) -> None:
    """vLLM where the recipe names it, and a limit that the model has."""
    sampler = recipe.sampler
    if sampler.max_length is not None and model.longest is not None and sampler.max_length > model.longest:
        raise UsageError(
            f"sampler.max_length = {sampler.max_length} is more than the {model.longest} positions of {model.place}"
        )
    if _draws(stage) and model.longest is None and sampler.max_length is None:
        raise UsageError(f"{model.place} says no longest sequence: set sampler.max_length")
    why_not = why_not_vllm(model.policy, on_gpu=_some_gpu(recipe)) if _draws(stage) and sampler.engine == "vllm" else ""
    if why_not:
        raise UsageError(
            f'stage {stage.name!r}: sampler.engine = "vllm": {why_not}; install it (docs/cluster.md) or say '
            '"transformers"'
        )


def _some_gpu(recipe: Recipe) -> bool:
    """Workers of another host may have GPUs where this process has none."""
    return torch.cuda.is_available() or recipe.cluster.address is not None or "RAY_ADDRESS" in os.environ


def _check_teacher_engine(recipe: Recipe, stage: Stage, model: _Inspected) -> None:
    """A teacher behind vLLM can be run by it."""
    why_not = why_not_vllm(model.policy, on_gpu=_some_gpu(recipe))
    why_not = why_not or ("" if installed("ray") else "Ray is not installed")
    if why_not:
        raise UsageError(
            f'stage {stage.name!r}: a teacher with where = "vllm": {why_not}; install it (docs/cluster.md) or say '
            'where = "worker"'
        )


def _draws(stage: Stage) -> bool:
    return isinstance(stage, (EvalStage, GrpoStage, RejectStage, OpdStage)) or stage.eval_every > 0


def check_vocabulary(teacher: Policy, student: Policy, stage: str) -> None:
    """Raise UsageError where a divergence between the two would be of other words (``stages.vocabularies``)."""
    shared_words(teacher.tokenizer, student.tokenizer, f"stage {stage!r}")
