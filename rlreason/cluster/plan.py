"""Who has which GPU: what a recipe's ranks and workers need of a Ray with so many. Loads neither Ray nor torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from rlreason.cluster.needs import Need
from rlreason.config import DistillStage, EvalStage, GrpoStage, OpdStage, Recipe, RejectStage, SftStage, Stage
from rlreason.errors import UsageError

RANK, WORKER = "trainer rank", "rollout worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """Example: ``ClusterPlan(ranks=Need(...), workers=Need(...), draws=True, colocated=False)``."""

    #: None: the model that is trained is in the process of the run, with its first GPU where it has one.
    ranks: Need | None
    #: None: nothing is drawn over Ray.
    workers: Need | None
    #: Whether any stage is sure to draw.
    draws: bool
    #: Engines are on the trainer's GPUs, and take turns with it.
    colocated: bool
    #: Those that score in an actor of their own.
    teachers: tuple[Need, ...] = ()

    @property
    def needs(self) -> tuple[Need, ...]:
        """The trainer's first: its ranks are kept together; engines, which take what is left, last."""
        found = (self.ranks, *self.teachers, self.workers if self.draws else None)
        return tuple(one for one in found if one is not None)

    @property
    def others(self) -> tuple[Need, ...]:
        """What is reserved when it is asked for."""
        return () if self.draws or self.workers is None else (self.workers,)


def draws(recipe: Recipe) -> bool:
    """Whether any stage draws with the run's own models."""
    return any(_draws(recipe, stage) for stage in recipe.stage)


def _draws(recipe: Recipe, stage: Stage) -> bool:
    if isinstance(stage, RejectStage):
        return stage.model not in recipe.endpoint
    if isinstance(stage, EvalStage):
        return any(one not in recipe.endpoint for one in stage.models)
    return not isinstance(stage, (SftStage, DistillStage)) or stage.eval_every > 0


def teacher_kind(name: str) -> str:
    """What the actor of ``[teacher.NAME]`` is called in a plan."""
    return f"teacher {name}"


def teachers_elsewhere(recipe: Recipe, gpus: float) -> tuple[str, ...]:
    """Names of the teachers that score in a Ray actor, where there are so many GPUs."""
    if not over_ray(recipe, gpus):
        return ()
    asked = [name for one in recipe.stage if isinstance(one, OpdStage) for name in one.teachers(recipe.teacher)]
    return tuple(name for name in dict.fromkeys(asked) if recipe.teacher[name].where != "trainer")


def over_ray(recipe: Recipe, gpus: float) -> bool:
    """Whether rollout workers are Ray actors, where there are so many GPUs."""
    kind, engine = recipe.cluster.kind, recipe.sampler.engine
    if kind != "auto":
        return kind == "ray"
    wants_vllm = engine == "vllm" or (engine == "auto" and gpus > 0)
    wants_vllm |= any(one.where == "vllm" for one in recipe.teacher.values())
    return wants_vllm and find_spec("ray") is not None and find_spec("vllm") is not None


def colocates(recipe: Recipe, gpus: float) -> bool:
    """Whether engine and trainer take turns on the trainer's GPUs: ``cluster.colocate``, else where the trainer leaves
    none for an engine and nothing is drawn while it learns."""
    said = recipe.cluster.colocate
    if isinstance(said, bool):
        return said
    if not gpus or recipe.cluster.gpus_per_worker is not None or not trains_and_draws(recipe):
        return False
    teachers = len(teachers_elsewhere(recipe, gpus))
    if teachers and not recipe.trainer.ranks:  # Ray would give a teacher the GPU that this process trains on
        return False
    left = gpus - teachers - max(1, recipe.trainer.ranks)
    alone = recipe.sampler.tensor_parallel == 1 or not recipe.trainer.ranks
    fits = left < recipe.sampler.tensor_parallel <= gpus
    return fits and alone and over_ray(recipe, gpus) and not _ahead(recipe)


def trains_and_draws(recipe: Recipe) -> bool:
    """Whether the run has a trainer and an engine."""
    return draws(recipe) and not all(isinstance(one, (RejectStage, EvalStage)) for one in recipe.stage)


def plan_places(recipe: Recipe, gpus: float, cores: int) -> ClusterPlan:
    """What is reserved in a Ray with ``gpus`` GPUs; ``cores`` of this host are how many workers draw without any.

    Raises UsageError for what can't share GPUs.
    """
    cluster, trainer = recipe.cluster, recipe.trainer
    on_gpus = gpus > 0 or bool(cluster.gpus_per_worker)  # said outright: an autoscaler may have none up yet
    colocated = colocates(recipe, gpus)
    each = cluster.gpus_per_worker
    if each is None:
        each = float(recipe.sampler.tensor_parallel) if on_gpus else 0.0
    _check(recipe, gpus, colocated=colocated)
    shared = on_gpus and colocated and bool(trainer.ranks)
    if shared:
        each = 0.5  # Ray counts, it does not divide: rank and engine are on one GPU
    ranks = workers = None
    if trainer.ranks:
        ranks = Need(
            kind=RANK,
            setting="trainer.ranks",
            count=trainer.ranks,
            gpus=(0.5 if shared else 1.0) if on_gpus else 0.0,
            guest_cpus=cluster.cpus_per_worker if shared else 0.0,
            guest_gpus=0.5 if shared else 0.0,
        )
    if over_ray(recipe, gpus):
        count = cluster.rollout_workers or (0 if each else cores)
        workers = Need(
            kind=WORKER,
            setting="cluster.rollout_workers",
            count=count or (1 if on_gpus and colocated and not shared else 0),
            cpus=cluster.cpus_per_worker,
            gpus=each,
            spread=cluster.spread,
            within=RANK if shared else None,
            here=on_gpus and colocated and not shared,
        )
    teachers = tuple(
        Need(kind=teacher_kind(name), setting=f"teacher.{name}", count=1, gpus=1.0 if on_gpus else 0.0)
        for name in teachers_elsewhere(recipe, gpus)
    )
    return ClusterPlan(ranks=ranks, workers=workers, draws=draws(recipe), colocated=colocated, teachers=teachers)


def _ahead(recipe: Recipe) -> bool:
    return any(isinstance(one, GrpoStage) and one.staleness > 0 for one in recipe.stage)


def _check(recipe: Recipe, gpus: float, *, colocated: bool) -> None:
    cluster, ranks, width = recipe.cluster, recipe.trainer.ranks, recipe.sampler.tensor_parallel
    if colocated and ranks and width > 1:
        raise UsageError(
            "cluster.colocate puts an engine on each rank's GPU, and sampler.tensor_parallel = "
            f"{width} wants {width} GPUs for one: use one of them"
        )
    if colocated and ranks and cluster.rollout_workers > ranks:
        raise UsageError(
            f"cluster.colocate puts an engine on each rank's GPU, and cluster.rollout_workers = "
            f"{cluster.rollout_workers} is more than trainer.ranks = {ranks}: use as many or fewer"
        )
    teachers = teachers_elsewhere(recipe, gpus) if gpus else ()
    if teachers and (gpus == 1 or (colocated and not ranks)):
        where = recipe.teacher[teachers[0]].where
        raise UsageError(
            f'teacher.{teachers[0]}.where = "{where}" wants a GPU that neither trainer nor engine has: say where = '
            '"trainer"' + (", or trainer.ranks = 1 with cluster.colocate" if gpus > 1 else "")
        )
    alone = gpus == 1 and cluster.gpus_per_worker is None and not isinstance(cluster.colocate, bool)
    if alone and trains_and_draws(recipe) and over_ray(recipe, gpus) and _ahead(recipe):
        raise UsageError(
            "one GPU is for trainer and engine in turns, and staleness > 0 draws while the policy learns: set it to "
            "0, or give the engine a part of the GPU with cluster.gpus_per_worker = 0.5 and "
            "sampler.gpu_memory_utilization"
        )
