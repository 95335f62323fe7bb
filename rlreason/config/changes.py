"""What may be different in a recipe when its run is taken up again."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from rlreason.config.recipe import Recipe, RejectStage
from rlreason.errors import UsageError
from rlreason.secrets import MASK, is_secret

#: Keys that say where and how fast the work is done, what is kept and what is looked at, but not what is computed; with
#: other batches or another number of GPUs, results may differ by rounding, as on another machine. docs/run_directory.md
#: has the same table.
FREE = (
    "description",
    "data.allow_overlap",
    "trainer.save_every",
    "trainer.keep_checkpoints",
    "trainer.best_metric",
    "trainer.max_skipped_steps",
    "trainer.ranks",
    "trainer.tensor_parallel",
    "trainer.expert_parallel",
    "trainer.activation_checkpointing",
    "trainer.attention",
    "trainer.offload",
    "sampler.max_rows",
    "sampler.kv_cache_gib",
    "sampler.gpu_memory_utilization",
    "sampler.tensor_parallel",
    "sampler.enforce_eager",
    "sampler.delivery",
    "sampler.transport",
    "sampler.canary",
    "sampler.canary_tolerance",
    "cluster.threads",
    "cluster.reward_workers",
    "cluster.reward_concurrency",
    "cluster.address",
    "cluster.rollout_workers",
    "cluster.cpus_per_worker",
    "cluster.gpus_per_worker",
    "cluster.spread",
    "cluster.colocate",
    "cluster.wait_for_places",
    "cluster.worker_timeout",
    "cluster.dollars_per_hour",
    "reward.require_audit",
    "reward.audits",
    "logging.*",
    "health.*",
    "endpoint.*.url",
    "endpoint.*.api_key_env",
    "endpoint.*.concurrency",
    "endpoint.*.timeout",
    "stage.*.micro_batch_tokens",
    "stage.*.eval_every",
    "stage.*.eval_max_tokens",
    "stage.*.logged_groups",
    "stage.*.diagnose_every",
)
#: Keys of a stage that may grow.
LONGER = ("steps", "epochs")
#: Keys of a reject stage that say what is made of its draws, which are all written before: with ``filters`` on both
#: sides, and as long as the stage is not done.
OF_DRAWS = ("filters.*", "keep_per_problem", "keep_rejected")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A key with two values; None: it has none. Example: ``Difference(key="stage.grpo.steps", old=50, new=80)``."""

    key: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old, self.key)} -> {_shown(self.new, self.key)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeChanges:
    """Differences that a run may go on with. Example: ``RecipeChanges(differences=(…,), extended=("grpo",))``."""

    differences: tuple[Difference, ...]
    #: Stages with more steps than before.
    extended: tuple[str, ...]


def differences(old: Recipe, new: Recipe) -> list[Difference]:
    """Every key whose value differs, in the order of the recipe. Recipes are compared as read, so that a default that
    is written out, and one that is new, are no difference."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = [*before, *(key for key in after if key not in before)]
    found = (Difference(key=key, old=before.get(key), new=after.get(key)) for key in keys)
    return [one for one in found if one.old != one.new]


def allowed_changes(old: Recipe, new: Recipe, where: str, done: Collection[str] = ()) -> RecipeChanges:
    """The differences, where all of them are allowed. ``where`` names the run in messages, ``done`` its done stages.

    Raises UsageError naming the first key that must stay, its old and its new value.
    """
    stages = [stage.name for stage in old.stage], [stage.name for stage in new.stage]
    if stages[0] != stages[1]:
        raise UsageError(
            f"{where} was begun with the stages {', '.join(stages[0])}, and the recipe now has {', '.join(stages[1])}: "
            "go on with those or start anew"
        )
    found = differences(old, new)
    extended = []
    for one in found:
        table, _, rest = one.key.partition(".")
        name, _, key = rest.partition(".")
        if table == "stage" and key in LONGER:
            if not isinstance(one.old, (int, float)) or not isinstance(one.new, (int, float)) or one.new < one.old:
                raise UsageError(
                    f"{where} was begun with {one.key} = {_shown(one.old)}, not {_shown(one.new)}: a stage may be "
                    f"given more {key}, not fewer"
                )
            extended.append(name)
        elif table == "stage" and name not in done and _is_of_draws(key, name, old, new):
            continue
        elif not any(fnmatchcase(one.key, pattern) for pattern in FREE):
            before, now = _shown(one.old, one.key), _shown(one.new, one.key)
            raise UsageError(
                f"{where} was begun with {one.key} = {before}, not {now}, which would change its "
                "results: go on with that value or start anew (docs/run_directory.md lists what may change)"
            )
    return RecipeChanges(differences=tuple(found), extended=tuple(extended))


def _is_of_draws(key: str, name: str, old: Recipe, new: Recipe) -> bool:
    stages = [stage for recipe in (old, new) for stage in recipe.stage if stage.name == name]
    filtered = all(isinstance(stage, RejectStage) and stage.filters is not None for stage in stages)
    return filtered and any(fnmatchcase(key, pattern) for pattern in OF_DRAWS)


def _flat(recipe: Recipe) -> Iterator[tuple[str, object]]:
    table = recipe.model_dump(mode="json", exclude={"stage"})
    yield from _flat_table("", table)
    for stage in recipe.stage:
        yield from _flat_table(f"stage.{stage.name}.", stage.model_dump(mode="json"))


def _flat_table(prefix: str, table: dict[str, object]) -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        name = f'"{key}"' if "." in key or ":" in key else key
        if isinstance(value, dict) and value:
            yield from _flat_table(f"{prefix}{name}.", value)
        elif value is not None and value != {}:
            yield f"{prefix}{name}", value


def _shown(value: object, key: str = "") -> str:
    return "nothing" if value is None else MASK if is_secret(key, value) else repr(value)
