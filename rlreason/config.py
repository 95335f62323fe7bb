"""The recipe: its schema, loading a TOML file, `key=value` overrides, errors that name the key.

A recipe is complete and read once. Every default stands here and nowhere else.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from rlreason.config_engine import ClusterConfig, SamplerConfig, Section
from rlreason.config_errors import explain
from rlreason.data.rows import Columns
from rlreason.errors import UsageError, nearest
from rlreason.objective.presets import expand
from rlreason.objective.spec import ObjectiveSpec

Scalar = str | int | float | bool


class TokenizerConfig(Section):
    """The tokenizer of a model built from nothing; a model loaded by ``path`` brings its own."""

    kind: Literal["characters", "bpe"] = "characters"
    #: Tokens of a BPE tokenizer, trained on the training problems.
    vocab_size: int = Field(2048, ge=300)


class PolicyConfig(Section):
    """A model: loaded from ``path`` (folder or hub id), or built from a transformers config with random weights."""

    path: str | None = None
    model_type: str = "qwen3_moe"
    #: Passed to the transformers config class of ``model_type``; with ``path``, what the loaded model must have.
    model: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    tokenizer: TokenizerConfig = TokenizerConfig()
    #: auto: float32 on a CPU, bfloat16 on an accelerator (logits and log-probabilities are float32 everywhere).
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


class DataConfig(Section):
    """Where problems come from and how they are asked."""

    #: A procedural task (arithmetic, countdown), a JSONL or Parquet file, or a hub id; several: the first that exists.
    train: str | tuple[str, ...]
    #: Likewise; a procedural task has its own held-out problems.
    heldout: str | tuple[str, ...] | None = None
    #: Options of a procedural task.
    options: dict[str, Scalar] = Field(default_factory=dict)
    #: Which column of a data file holds what; of several names the first that the file has.
    columns: Columns = Columns()
    #: The gold answer is what follows this marker in the answer column.
    answer_after: str | None = None
    #: How answers of file and hub data are checked; procedural tasks name their own.
    verifier: str = "math"
    system: str | None = None
    answer_style: Literal["tags", "boxed"] = "tags"


class OptimizerConfig(Section):
    """AdamW and its schedule."""

    lr: float = Field(1e-6, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_lr_ratio: float = Field(0.1, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)


class TrainingStage(Section):
    """What all stages that train share."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    steps: int = Field(ge=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    #: Tokens that one micro-batch computes at most, a shared prompt counted once; changes memory and speed, never the
    #: loss.
    micro_batch_tokens: int = Field(16384, ge=1)
    #: Steps between held-out evaluations; 0 never, the last step always counts when it is not 0.
    eval_every: int = Field(0, ge=0)
    #: Held-out problems of each of these evaluations, and the longest answer they may have.
    eval_problems: int = Field(200, ge=1)
    eval_max_tokens: int = Field(64, ge=1)


class SftStage(TrainingStage):
    """Supervised fine-tuning on demonstrations."""

    kind: Literal["sft"]
    #: "policy" or "student" build or load that model; a stage name continues from it. Default: the last trained.
    model: str | None = None
    batch_size: int = Field(64, ge=1)
    #: Distinct demonstrations; None takes all that there are (a procedural task never runs out).
    demonstrations: int | None = Field(None, ge=1)


class GrpoStage(TrainingStage):
    """Group-relative policy optimisation with verified rewards."""

    kind: Literal["grpo"]
    model: str | None = None
    #: Training problems to pass over first, such as those that the cold start showed.
    first_problem: int = Field(0, ge=0)
    problems_per_step: int = Field(ge=1)
    samples_per_problem: int = Field(8)
    max_tokens: int = Field(ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    #: Optimizer steps on each batch of rollouts; more than 1 is off-policy and relies on the clip.
    updates_per_step: int = Field(1, ge=1)
    #: Drop groups whose rewards are all equal (DAPO dynamic sampling). Their advantage is 0 with a group's baseline;
    #: with another one they are never dropped.
    drop_zero_variance: bool = True
    #: A preset's name, a table with ``preset`` and what differs from it, or a table of all that differs from DAPO.
    objective: Annotated[ObjectiveSpec, BeforeValidator(expand)] = ObjectiveSpec()
    #: Groups of each step kept in rollouts.jsonl.
    logged_groups: int = Field(4, ge=0)
    #: Versions that the weights may be ahead of those that began a group. 0: sampling and training take turns, exactly
    #: on-policy. 1: the next step's groups are drawn while this one is learnt from.
    staleness: int = Field(0, ge=0)
    #: With staleness: groups under way take new weights between two tokens, instead of ending with the old ones.
    in_flight_updates: bool = True
    #: Steps between splits of the sampler-trainer difference by cause (mismatch.jsonl); 0 never.
    diagnose_every: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _possible(self) -> GrpoStage:
        if self.samples_per_problem < 2:
            raise ValueError(
                f"samples_per_problem = {self.samples_per_problem}: a group needs at least 2 completions, "
                "or its advantage is 0 by definition"
            )
        if self.top_p < 1.0 or self.top_k > 0:
            raise ValueError(
                "top_p and top_k must stay at 1 and 0 in training: the trainer's log-probabilities are those of the "
                "full distribution, so a truncated sampler would bias the ratio"
            )
        if self.updates_per_step > 1 and self.objective.ratio == "on_policy":
            raise ValueError(
                'objective ratio = "on_policy" takes one update per step: from the second on the batch is off-policy, '
                'and nothing would correct for it. Use ratio = "token" or updates_per_step = 1'
            )
        if self.staleness and self.objective.correction == "none" and self.objective.clip != "dppo_tv":
            raise ValueError(
                f"staleness = {self.staleness} trains on completions of older weights, and objective.correction = "
                '"none" would not weigh them: use correction = "tis" (the default), "mis" or "icepop", or staleness = 0'
            )
        if self.objective.baseline == "given":
            raise ValueError('objective baseline = "given" needs baselines from a critic, which no stage trains yet')
        if self.updates_per_step > self.problems_per_step:
            raise ValueError(
                f"updates_per_step ({self.updates_per_step}) must not exceed problems_per_step "
                f"({self.problems_per_step})"
            )
        return self


class RejectStage(Section):
    """Rejection sampling: draw from a trained policy, keep completions that are verified correct."""

    kind: Literal["reject"]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    model: str | None = None
    #: Training problems to pass over first.
    first_problem: int = Field(0, ge=0)
    problems: int = Field(ge=1)
    samples_per_problem: int = Field(4, ge=1)
    #: Distinct correct completions kept of one problem.
    keep_per_problem: int = Field(1, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    max_tokens: int = Field(ge=1)


class DistillStage(TrainingStage):
    """Supervised training of a student on traces of rejection sampling, optionally on the teacher's distribution."""

    kind: Literal["distill"]
    model: str | None = "student"
    #: Name of the ``reject`` stage; default the last one.
    traces: str | None = None
    batch_size: int = Field(64, ge=1)
    #: Weight of KL(teacher || student) on the traces, between 0 (traces only) and 1; needs one tokenizer for both.
    teacher_kl: float = Field(0.0, ge=0, le=1)


class EvalStage(Section):
    """Measure models on held-out problems."""

    kind: Literal["eval"]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    #: Names of training stages.
    models: tuple[str, ...] = Field(min_length=1)
    problems: int = Field(500, ge=1)
    samples_per_problem: int = Field(1, ge=1)
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(ge=1)


Stage = Annotated[SftStage | GrpoStage | RejectStage | DistillStage | EvalStage, Field(discriminator="kind")]
RewardTerm = float | dict[str, Scalar]
#: The reward of a recipe that names none.
ACCURACY: dict[str, RewardTerm] = {"accuracy": 1.0}


class Recipe(Section):
    """A whole run: models, data, rewards, engine and the stages in order."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    seed: int = Field(0, ge=0)
    policy: PolicyConfig = PolicyConfig()
    student: PolicyConfig | None = None
    data: DataConfig
    #: Reward name or plug-in -> weight, or {weight, options...}.
    reward: dict[str, RewardTerm] = Field(default_factory=lambda: dict(ACCURACY))
    sampler: SamplerConfig = SamplerConfig()
    cluster: ClusterConfig = ClusterConfig()
    stage: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _stages_fit(self) -> Recipe:
        if self.cluster.kind != "ray" and self.cluster.address is not None:
            raise ValueError(
                f'cluster.address = {self.cluster.address!r} is of a Ray cluster: say cluster.kind = "ray"'
            )
        if self.cluster.colocate and any(isinstance(one, GrpoStage) and one.staleness for one in self.stage):
            raise ValueError(
                "cluster.colocate takes turns on one GPU, and staleness > 0 samples while the policy learns: use one"
            )
        names = [stage.name for stage in self.stage]
        for name in names:
            if name in {"policy", "student"}:
                raise ValueError(f"a stage can't be called {name!r}: that names the [{name}] table; try distilled")
            if names.count(name) > 1:
                raise ValueError(f"two stages are called {name!r}; stage names must differ")
        trained: list[str] = []
        rejects: list[str] = []
        for stage in self.stage:
            self._check_references(stage, trained, rejects)
            if isinstance(stage, RejectStage):
                rejects.append(stage.name)
            elif not isinstance(stage, EvalStage):
                trained.append(stage.name)
        return self

    def _check_references(self, stage: Stage, trained: list[str], rejects: list[str]) -> None:
        models = stage.models if isinstance(stage, EvalStage) else (stage.model,)
        for model in models:
            if model == "student" and self.student is None:
                raise ValueError(f"stage {stage.name!r} trains the student, but the recipe has no [student] table")
            if model is not None and model not in {"policy", "student", *trained}:
                raise ValueError(
                    f"stage {stage.name!r}: model {model!r} is neither policy, student nor an earlier training stage "
                    f"({', '.join(trained) or 'none yet'}){nearest(model, trained)}"
                )
        if isinstance(stage, RejectStage) and stage.temperature == 0 and stage.samples_per_problem > 1:
            raise ValueError(
                f"stage {stage.name!r}: at temperature 0 all {stage.samples_per_problem} samples are equal"
            )
        if isinstance(stage, DistillStage):
            if not rejects:
                raise ValueError(f"stage {stage.name!r} needs the traces of an earlier stage of kind reject")
            if stage.traces is not None and stage.traces not in rejects:
                raise ValueError(
                    f"stage {stage.name!r}: traces {stage.traces!r} is no earlier reject stage "
                    f"({', '.join(rejects)}){nearest(stage.traces, rejects)}"
                )


def recipes_folder() -> Path:
    """The shipped recipes."""
    return Path(__file__).parent / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.parent.name for path in recipes_folder().glob("*/recipe.toml"))


def locate(recipe: str) -> Path:
    """The TOML file of a shipped name or a path. Raises UsageError naming the nearest shipped recipe."""
    shipped = recipes_folder() / recipe / "recipe.toml"
    if shipped.is_file():
        return shipped
    path = Path(recipe)
    if path.is_dir() and (path / "recipe.toml").is_file():
        return path / "recipe.toml"
    if path.is_file():
        return path
    names = shipped_recipes()
    raise UsageError(
        f"no recipe {recipe!r}: neither a file nor a shipped recipe ({', '.join(names)}){nearest(recipe, names)}"
    )


def load(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply ``key=value`` overrides. Raises UsageError with file, key and nearest match."""
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    for override in overrides:
        _override(table, override)
    try:
        return TypeAdapter(Recipe).validate_python(table)
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error, table, Recipe)}") from error


def _override(table: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UsageError(f"override {override!r}: write key=value, such as seed=1 or stage.grpo.steps=10")
    parts = _split_key(key)
    node: Any = table
    for depth, part in enumerate(parts[:-1]):
        if isinstance(node, list):
            node = _stage_named(node, part, override)
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        else:
            raise UsageError(f"override {override!r}: {'.'.join(parts[:depth])} holds a value, not a table")
    if not isinstance(node, dict):
        raise UsageError(f"override {override!r}: a stage is addressed by name, such as stage.grpo.steps=10")
    node[parts[-1]] = _value(text)


def _split_key(key: str) -> list[str]:
    """Dotted key, with quoted parts for names that hold dots: ``reward."pkg.mod:fn"``."""
    parts: list[str] = []
    for index, piece in enumerate(key.split('"')):
        parts += [piece] if index % 2 else [part for part in piece.split(".") if part]
    return parts


def _stage_named(stages: list[dict[str, Any]], name: str, override: str) -> dict[str, Any]:
    for stage in stages:
        if stage.get("name") == name:
            return stage
    names = [str(stage.get("name")) for stage in stages]
    raise UsageError(f"override {override!r}: no stage {name!r} (stages: {', '.join(names)}){nearest(name, names)}")


def _value(text: str) -> Any:
    """A TOML value where the text is one, a string otherwise."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
