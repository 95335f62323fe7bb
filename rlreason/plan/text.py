"""`rlreason plan`: what a recipe would do, in words, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rlreason.check import check
from rlreason.cluster.plan import colocates
from rlreason.config import (
    DistillStage,
    EvalStage,
    GrpoStage,
    OpdStage,
    Recipe,
    RejectStage,
    RewardTable,
    SftStage,
    Stage,
)
from rlreason.plan.data import check_alphabet, data_lines, stage_data
from rlreason.plan.experts import expert_lines
from rlreason.plan.lengths import length_line
from rlreason.plan.opd import opd_lines
from rlreason.plan.size import ANY_SIZE, SizeOptions, sizes
from rlreason.stages.epochs import planned_rows, with_rows
from rlreason.stages.references import References
from rlreason.traces.rows import KEPT


def describe(recipe: Recipe, path: Path, size: SizeOptions = ANY_SIZE) -> str:
    """The effective plan as text. Raises UsageError where the recipe, its rewards or its data are wrong, and where it
    can't fit the GPUs of ``size``."""
    checked = check(recipe, path.parent)
    check_alphabet(checked)
    epochs = planned_rows(checked.recipe, checked.data)
    recipe, checked = with_rows(recipe, epochs), replace(checked, recipe=with_rows(checked.recipe, epochs))
    sized = sizes(checked, size)
    lines = [
        f"{recipe.name}  (seed {recipe.seed})  {recipe.description}",
        *data_lines(checked, path.parent),
        f"  reward   {_rewards(recipe.reward)}",
    ]
    if References(recipe).uses("policy"):
        lines.append(f"  policy   {_model(recipe, student=False)}")
    if recipe.student is not None:
        lines.append(f"  student  {_model(recipe, student=True)}")
    lines += [f"  sampler  {_sampler(recipe)}", *_vllm(recipe), f"  lengths  {length_line(recipe)}"]
    lines += sized.run
    lines += [f"  endpoint {name}: {one.model} at {one.url}" for name, one in recipe.endpoint.items()]
    lines.append(f"  states   {_states(recipe)}")
    for number, stage in enumerate(recipe.stage, start=1):
        lines.append(f"{number:>3}. {stage.name} ({stage.kind})")
        said = (
            *_epochs(stage, epochs),
            *_stage(stage, recipe, sparse=stage.name in sized.sparse),
            *stage_data(stage, checked),
            *sized.stages.get(stage.name, ()),
        )
        lines += [f"       {line}" for line in said]
    return "\n".join(lines)


def _rewards(table: RewardTable) -> str:
    parts = []
    for name, term in table.items():
        if isinstance(term, dict):
            options = ", ".join(f"{key}={value}" for key, value in term.items() if key != "weight")
            parts.append(f"{term['weight']:g}·{name}({options})")
        else:
            parts.append(f"{term:g}·{name}")
    return " + ".join(parts)


def _model(recipe: Recipe, *, student: bool) -> str:
    config = recipe.student if student and recipe.student is not None else recipe.policy
    if config.path is not None:
        return f"loaded from {config.path}, {config.dtype}"
    shape = ", ".join(f"{key}={value}" for key, value in config.model.items())
    return f"{config.model_type} from random weights ({shape}), {config.dtype}, {config.tokenizer.kind} tokenizer"


def _sampler(recipe: Recipe) -> str:
    sampler, cluster = recipe.sampler, recipe.cluster
    engine = {"auto": "vLLM on GPUs where it and Ray are installed, else transformers"}
    where = {"auto": "over Ray with vLLM, else in this process", "inline": "in this process", "ray": "over Ray"}
    workers = f", {cluster.rollout_workers} workers" if cluster.rollout_workers else ""
    proof = "every delivery proved" if sampler.canary else "deliveries NOT proved (sampler.canary = false)"
    rows = f"at most {sampler.max_rows} rows at once"
    drawn = f"{engine.get(sampler.engine, sampler.engine)}; {where[cluster.kind]}{workers}{_turns(recipe)}"
    return f"{drawn}; {rows}; {proof}"


def _turns(recipe: Recipe) -> str:
    """Whether engines and trainer share GPUs (docs/cluster.md)."""
    said = recipe.cluster.colocate
    if said is True:
        return ", in turns with the trainer on its GPUs"
    return ", in turns with the trainer where it leaves no GPU" if said and colocates(recipe, 1.0) else ""


def _vllm(recipe: Recipe) -> list[str]:
    """What the recipe asks of vLLM alone."""
    sampler = recipe.sampler
    said = [f"{key} = {value!r}" for key, value in sampler.vllm.items()]
    if not sampler.request_seeds:
        said.append("NO seed of its own for a request: a run that is resumed draws other tokens (request_seeds)")
    return [f"  vLLM     {'; '.join(said)}"] if said and sampler.engine != "transformers" else []


def _states(recipe: Recipe) -> str:
    trainer = recipe.trainer
    when = f"every {trainer.save_every} steps, " if trainer.save_every else ""
    kept = f"; newest {trainer.keep_checkpoints} step checkpoints kept" if trainer.keep_checkpoints else ""
    best = f"; the best by {trainer.best_metric} kept" if trainer.best_metric else ""
    return f"{when}when interrupted and at the end of a stage{kept}{best}"


def _staleness(stage: GrpoStage) -> str:
    if not stage.staleness:
        return "staleness 0: sampling and training take turns"
    how = "take new weights between two tokens" if stage.in_flight_updates else "end with the weights they began with"
    return (
        f"staleness {stage.staleness}: groups begin with weights at most {stage.staleness} version(s) old and {how}; "
        f'corrected by "{stage.objective.correction}"'
    )


def _ratio(stage: GrpoStage) -> str:
    """What the ratio and the clip of the objective do in this stage."""
    if stage.objective.old == "sampler":
        return "the ratio is to the sampler's log-probabilities, and the clip acts on their age and mismatch"
    if stage.updates_per_step > 1:
        return "the first with ratio 1, the others off-policy from the trainer's own log-probabilities before it"
    if not stage.staleness:
        return "on-policy, the ratio is 1 and a clip never acts"
    weight = {
        "tis": "REINFORCE weighted by truncated importance sampling",
        "mis": "REINFORCE weighted by masked importance sampling",
        "icepop": "REINFORCE weighted by masked importance sampling of tokens",
        "none": "REINFORCE without a weight for the age of a rollout",
    }[stage.objective.correction]
    return (
        f"the ratio is to the trainer's log-probabilities of now, so it is 1 and no clip acts: {weight}; "
        'objective.old = "sampler" lets the ratio and its clip carry the staleness instead'
    )


def _batch(stage: GrpoStage) -> str:
    filtered = "not computed, in every denominator" if stage.leaves_out else "computed"
    if stage.filter_zero_variance and not stage.leaves_out:
        filtered += ", for the KL or the entropy in the loss"
    if not stage.resample:
        return f"completions with advantage 0: {filtered}"
    return (
        f"up to {stage.resample} more rounds of {stage.problems_per_step} problems a step, until "
        f"{stage.problems_per_step} groups have correct and wrong completions; advantage 0: {filtered}"
    )


def _rate(stage: GrpoStage | SftStage | DistillStage) -> str:
    lr = stage.optimizer.lr
    return f"lr {lr if lr == 'auto' else f'{lr:g}'} {stage.optimizer.schedule}"


def _own_reward(stage: GrpoStage, recipe: Recipe) -> list[str]:
    return [f"reward of this stage: {_rewards(recipe.reward_of(stage))}"] if recipe.has_own_reward(stage) else []


def _reference(stage: GrpoStage) -> list[str]:
    """What the KL term is measured from."""
    if stage.objective.kl_coef <= 0:
        return []
    if not stage.reference_every:
        return ["reference of the KL term: what the stage begins with"]
    updates = stage.reference_every * stage.updates_per_step
    return [f"reference of the KL term: the policy of every {stage.reference_every} steps ({updates:,} updates)"]


def _epochs(stage: Stage, rows: Mapping[str, int]) -> list[str]:
    if not isinstance(stage, (SftStage, DistillStage)) or stage.epochs is None:
        return []
    count = rows[stage.name]
    if not count:
        return [f"{stage.epochs:g} epochs of rows that are not there yet"]
    most = "at most " if isinstance(stage, DistillStage) else ""
    return [f"{stage.epochs:g} epochs of {most}{count:,} rows"]


def _stage(stage: Stage, recipe: Recipe, *, sparse: bool) -> list[str]:
    if isinstance(stage, OpdStage):
        return [*opd_lines(stage, recipe), *expert_lines(stage, recipe, sparse=sparse)]
    if isinstance(stage, GrpoStage):
        rollouts = stage.problems_per_step * stage.samples_per_problem
        return [
            stage.objective.formula(),
            f"{stage.steps} steps x {stage.problems_per_step} problems x {stage.samples_per_problem} completions = "
            f"{rollouts * stage.steps:,} completions of at most {stage.max_tokens} tokens; temperature "
            f"{stage.temperature:g}",
            f"{stage.updates_per_step} update(s) per batch of rollouts: {_ratio(stage)}",
            _batch(stage),
            _staleness(stage),
            *_own_reward(stage, recipe),
            *_reference(stage),
            *expert_lines(stage, recipe, sparse=sparse),
            _rate(stage),
        ]
    if isinstance(stage, (SftStage, DistillStage)):
        rows = f"{stage.steps} steps x {stage.batch_size} rows = {stage.steps * stage.batch_size:,} rows"
        extra = ""
        if isinstance(stage, SftStage) and stage.demonstrations is not None:
            epochs = stage.steps * stage.batch_size / stage.demonstrations
            extra = f" ({stage.demonstrations:,} demonstrations, {epochs:.1f} epochs)"
        if isinstance(stage, DistillStage) and stage.teacher_kl > 0:
            extra = f"; loss = {1 - stage.teacher_kl:g} CE + {stage.teacher_kl:g} KL(teacher || student)"
        more = expert_lines(stage, recipe, sparse=sparse)
        if isinstance(stage, DistillStage) and stage.trace_set is not None:
            there = "" if (Path(stage.trace_set) / KEPT).is_file() else ", which is NOT THERE yet: a run is refused"
            more.append(f"traces of {stage.trace_set}{there}")
        if isinstance(stage, DistillStage) and stage.general is not None:
            more.append(f"{stage.general_share:.3g} of the tokens are demonstrations of {stage.general}")
        return [f"{rows}{extra}; {_rate(stage)}", *more]
    if isinstance(stage, RejectStage):
        return [
            f"{stage.problems:,} problems x {stage.samples_per_problem} samples at temperature {stage.temperature:g}; "
            f"keeps up to {stage.keep_per_problem} correct of each"
        ]
    assert isinstance(stage, EvalStage)
    how = "greedy" if stage.temperature == 0 else f"{stage.samples_per_problem} samples at {stage.temperature:g}"
    return [f"{', '.join(stage.models)} on {stage.problems:,} held-out problems, {how}"]
