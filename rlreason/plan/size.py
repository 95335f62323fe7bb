"""The part of `rlreason plan` on size: parameters, memory of a GPU by part, time and money; it refuses what can't fit.

Light: torch is imported when there is something to size, and where it is not installed the plan says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rlreason.cluster.plan import colocates, draws, teachers_elsewhere
from rlreason.config import DistillStage, EvalStage, OpdStage, RejectStage, SftStage, Stage
from rlreason.errors import UsageError, nearest
from rlreason.plan.amounts import gb

if TYPE_CHECKING:
    from rlreason.check import CheckedRecipe
    from rlreason.config import Recipe
    from rlreason.plan.budget import Budgets, Drawing, Trained
    from rlreason.sizing.gpus import Gpu
    from rlreason.sizing.memory import Memory

#: What sizes are counted with.
NEEDED = ("torch", "transformers", "accelerate", "peft")


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeOptions:
    """What a plan is made for. Example: ``SizeOptions(gpu="h100", gpus=8, price=2.5)``."""

    #: A name in ``sizing.gpus.GPUS``; None: sizes only, without a limit.
    gpu: str | None = None
    #: GPUs in all; None: what the recipe asks for.
    gpus: int | None = None
    #: Dollars of a GPU for an hour; None: ``cluster.dollars_per_hour``.
    price: float | None = None
    #: Share of the GPU's peaks that is reached; None: ``sizing.clock.EFFICIENCY``.
    efficiency: float | None = None
    #: Bytes/s of a delivery, packing included; None: ``sizing.clock.PACKING`` and ``DELIVERY``.
    delivery: float | None = None


#: Sizes alone.
ANY_SIZE = SizeOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Lines of text: of the run, and of each stage by its name."""

    run: tuple[str, ...]
    stages: dict[str, tuple[str, ...]]
    #: Names of the stages that train a mixture of experts.
    sparse: frozenset[str] = frozenset()


def sizes(checked: CheckedRecipe, options: SizeOptions) -> Sizes:
    """What the recipe takes. Raises UsageError for a GPU that is not known, and with one for what can't fit, and
    as a run does for what is known here of its models."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        said = f"sizes need {' and '.join(missing)}, not installed here: pip install 'rlreason[train]'"
        if options.gpu is not None:
            raise UsageError(f"--gpu: {said}")
        return Sizes(run=(f"  size     not known: {said}",), stages={})
    from rlreason.plan.budget import Budgets
    from rlreason.plan.models import check_known_models

    layout = _layout(checked.recipe, options)
    budgets = Budgets(checked.recipe, checked.data, layout.gpu, layout.most_trainer)
    check_known_models(budgets)
    try:
        run = _models(budgets)
    except UsageError as error:
        if options.gpu is not None:
            raise
        return Sizes(run=(f"  size     {error}",), stages={})
    if layout.gpu is not None:
        run.append(f"  gpus     {layout.said(checked.recipe)}")
    stages = {one.name: tuple(_stage(budgets, layout, one, options)) for one in checked.recipe.stage}
    trained = [one for one in checked.recipe.stage if not isinstance(one, (EvalStage, RejectStage))]
    sparse = frozenset(one.name for one in trained if budgets.shape(budgets.policy_of(one)).routed_layers)
    return Sizes(run=tuple(run), stages=stages, sparse=sparse)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which GPUs do what."""

    gpu: Gpu | None
    gpus: int
    #: Of the trainer.
    trainer: int
    #: That the trainer could have beside one engine.
    most_trainer: int
    #: Engines that draw, of ``tensor_parallel`` GPUs each.
    engines: int
    #: They are on the trainer's GPU, in turns.
    shared: bool
    #: GPUs of teachers that score in an actor of their own.
    teachers: int

    def said(self, recipe: Recipe) -> str:
        assert self.gpu is not None
        one = f"{self.gpus} x {self.gpu.name} ({self.gpu.gigabytes:g} GB, {self.gpu.teraflops:,g} TFLOP/s in bfloat16, "
        one += f"{self.gpu.terabytes_per_second:g} TB/s: {self.gpu.source})"
        where = f"on the trainer's GPU{'s' if self.trainer > 1 else ''} in turns" if self.shared else "beside it"
        drawn = f"{self.engines} engine(s) of {recipe.sampler.tensor_parallel} {where}" if self.engines else "no engine"
        taught = f", {self.teachers} teacher(s) of 1" if self.teachers else ""
        return f"{one}; the trainer on {self.trainer}{taught}, {drawn}"


def _layout(recipe: Recipe, options: SizeOptions) -> Layout:
    from rlreason.sizing.gpus import GPUS

    if options.gpu is not None and options.gpu not in GPUS:
        raise UsageError(f"--gpu {options.gpu}: known are {', '.join(GPUS)}{nearest(options.gpu, list(GPUS))}")
    gpu = None if options.gpu is None else GPUS[options.gpu]
    trainer = max(1, recipe.trainer.ranks)
    each, cluster = recipe.sampler.tensor_parallel, recipe.cluster
    drawn = draws(recipe)
    # An engine in the trainer's process is on its GPU too.
    shared = drawn and (colocates(recipe, options.gpus or 0.0) or cluster.kind == "inline")
    wanted = 0 if not drawn or shared else max(1, cluster.rollout_workers) * each
    teachers = len(teachers_elsewhere(recipe, options.gpus or 1.0))
    gpus = options.gpus or trainer + teachers + wanted
    if gpu is not None and gpus < trainer + teachers + wanted:
        taught = f" and teachers in workers {teachers}" if teachers else ""
        raise UsageError(
            f"--gpus {gpus}: the trainer holds {trainer} (trainer.ranks){taught}, and "
            f"{max(1, cluster.rollout_workers)} engine(s) of {each} (sampler.tensor_parallel) take {wanted} more. "
            "Give it fewer of both, or more GPUs"
        )
    left = gpus - trainer - teachers
    engines = cluster.rollout_workers or (trainer if shared else left // each)
    engines = min(engines, trainer) if shared else engines  # one on each of the trainer's GPUs
    most = max(trainer, gpus - teachers - (0 if shared or not drawn else each))
    return Layout(
        gpu=gpu,
        gpus=gpus,
        trainer=trainer,
        most_trainer=most,
        engines=engines if drawn else 0,
        shared=shared,
        teachers=teachers,
    )


def _models(budgets: Budgets) -> list[str]:
    from rlreason.sizing.engine import cache_bytes
    from rlreason.stages.references import References

    lines = []
    tables = [("policy", budgets.recipe.policy), ("student", budgets.recipe.student)]
    used = References(budgets.recipe)
    for name, config in tables:
        if config is None or not used.uses(name):
            continue
        shape, width = budgets.shape(config), budgets.width(config)
        active = "" if shape.active == shape.total else f", {_count(shape.active)} active a token"
        lines.append(
            f"  size     {name}: {_count(shape.total)} parameters{active}; {gb(width * shape.total)} in "
            f"{'bfloat16' if width == 2 else 'float32'}; keys and values {gb(cache_bytes(shape, 1, width))} a token"
        )
    return lines


def _count(parameters: float) -> str:
    return f"{parameters / 1e9:,.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:,.2f} M"


def _stage(budgets: Budgets, layout: Layout, stage: Stage, options: SizeOptions) -> list[str]:
    if isinstance(stage, EvalStage) or (isinstance(stage, RejectStage) and stage.model in budgets.recipe.endpoint):
        return []
    from rlreason.sizing.activations import CountingError

    lines = [] if isinstance(stage, RejectStage) else _rate(budgets, stage)
    held = 0.0
    if not isinstance(stage, RejectStage):
        try:
            memory = _fitting(budgets, layout, stage)
        except CountingError as error:
            lines.append(f"memory not known: {error}")
        else:
            lines.append(f"memory {_memory_text(memory, layout, budgets, stage)}")
            held = sum(memory.of(name) for name in ("weights", "moments", "bfloat16 copy", "reference"))
    if isinstance(stage, OpdStage):
        from rlreason.plan.teachers import teacher_lines

        lines += teacher_lines(budgets, layout.gpus, stage)
    if layout.gpu is None:
        return lines
    from rlreason.plan.clock import time_lines

    rows = 0
    if not isinstance(stage, (SftStage, DistillStage)):
        rows, said = _drawing(budgets, layout, stage, held if layout.shared else 0.0)
        lines.append(said)
    return lines + time_lines(budgets, layout, stage, rows, options)


def _rate(budgets: Budgets, stage: Trained) -> list[str]:
    """Where a learning rate that the recipe leaves to the table is from."""
    if stage.optimizer.lr != "auto":
        return []
    from rlreason.config.learning_rates import SMALLEST, rate_of

    policy = budgets.policy_of(stage)
    total = budgets.shape(policy).total
    rate = rate_of(total, budgets.config(policy).model_type)
    small = "; the model is smaller than any of R1's, and learns faster at a higher one" if total < SMALLEST / 2 else ""
    return [f"lr auto: {rate.value:g}, {rate.said}{small}"]


def _memory_text(memory: Memory, layout: Layout, budgets: Budgets, stage: Trained) -> str:
    batch = budgets.micro_batch(stage, budgets.setup(stage))
    parts = ", ".join(f"{part.name} {gb(part.bytes)}" for part in memory.parts)
    where = f"of a GPU, {layout.trainer} rank(s)" if budgets.recipe.trainer.ranks else "of the trainer"
    limit = "" if layout.gpu is None else f" of {layout.gpu.gigabytes:g}"
    chosen = "" if stage.micro_batch_tokens else f" (at most {budgets.setup(stage).micro_batch_tokens:,}: what fits)"
    host = f"; in the memory of the hosts {gb(memory.host)} a rank" if memory.host else ""
    loading = budgets.loading(stage, budgets.setup(stage))
    host += f"; of the first rank's host {gb(loading)} while it reads the whole model" if loading else ""
    return (
        f"{where}: {parts}: {gb(memory.total)}{limit}{host}. Micro-batches of {batch.tokens:,} tokens{chosen}: "
        f"{batch.rows} answers of {batch.completion:,} behind prompts of {batch.prompt}"
    )


def _fitting(budgets: Budgets, layout: Layout, stage: Trained) -> Memory:
    """The stage's memory. Raises UsageError with the nearest change where a GPU has less."""
    from rlreason.plan.budget import RESERVE

    memory = budgets.memory(stage, budgets.setup(stage))
    if layout.gpu is None or budgets.fits(memory):
        return memory
    largest = sorted(memory.parts, key=lambda part: -part.bytes)[:3]
    found = budgets.nearest(stage)
    advice = f"nothing that rlreason has makes it fit {layout.gpus} of them"
    if found is not None:
        advice = f"the nearest change that fits: {' '.join(found[0])} ({gb(found[1].total)})"
    usable = layout.gpu.memory * (1 - RESERVE)
    raise UsageError(
        f"stage {stage.name!r} takes {gb(memory.total)} of each GPU of its trainer, and of an {layout.gpu.name}'s "
        f"{layout.gpu.gigabytes:g} GB {gb(usable)} are usable; most of it are "
        f"{', '.join(f'{part.name} {gb(part.bytes)}' for part in largest)}; {advice}"
    )


def _drawing(budgets: Budgets, layout: Layout, stage: Drawing, held: float) -> tuple[int, str]:
    """(rows that an engine draws at a time, a line). Raises UsageError where not one fits."""
    each = budgets.recipe.sampler.tensor_parallel
    engine = budgets.engine(stage, each, held)
    if not engine.rows:
        most = layout.gpus - (0 if layout.shared else layout.trainer)
        more = [2**power for power in range(1, 8) if each < 2**power <= most]
        found = next((one for one in more if budgets.engine(stage, one, held).rows), None)
        advice = (
            f"nothing up to {most} GPUs an engine fits; a smaller trainer on the same GPU, or shorter answers"
            if found is None
            else f"the nearest change that fits: sampler.tensor_parallel={found}"
        )
        raise UsageError(
            f"stage {stage.name!r}: an engine's weights take {gb(engine.weights)} of each of its {each} GPU(s), which "
            f"leaves {gb(engine.cache)} for keys and values, of which one answer takes {gb(engine.row)}; {advice}"
        )
    said = (
        f"engine of a GPU: weights {gb(engine.weights)}, keys and values {gb(engine.cache)}: {engine.rows} answers "
        f"at a time ({gb(engine.row)} each, at full length)"
    )
    return engine.rows, said
