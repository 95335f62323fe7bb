"""The schema of a recipe: models, data, rewards and the stages in order; the other tables are in ``engine``.

A recipe is complete and read once. Every default stands in these two files and nowhere else.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from rlreason.config.data import CurriculumConfig, DataChoice, DataConfig, Scalar
from rlreason.config.engine import ClusterConfig, EndpointConfig, SamplerConfig, Section, TrainerConfig
from rlreason.config.health import HealthConfig
from rlreason.config.logging import LoggingConfig
from rlreason.config.reward_audit import KEYS_SCHEMA, AuditedRewards
from rlreason.config.secret import FromEnvironment, OptionTable
from rlreason.errors import nearest
from rlreason.objective.presets import expand
from rlreason.objective.spec import ObjectiveSpec

#: Names of stages and endpoints.
NAME = r"^[a-z0-9][a-z0-9_]*$"


class TokenizerConfig(Section):
    """The tokenizer of a model built from nothing; a model loaded by ``path`` brings its own."""

    #: characters: one token a character of a procedural task. bpe: learnt from the training problems.
    kind: Literal["characters", "bpe"] = "characters"
    #: Tokens of a BPE tokenizer, trained on the training problems.
    vocab_size: int = Field(2048, ge=300)


class PolicyConfig(Section):
    """A model: loaded from ``path`` (folder, GGUF file, hub id), or built from a transformers config with random
    weights."""

    #: Folder, GGUF file (``.gguf``) or hub id; without it the model is built from nothing.
    path: str | None = None
    #: Architecture of a model built from nothing, by transformers' name.
    model_type: str = "qwen3_moe"
    #: Passed to the transformers config class of ``model_type``; with ``path``, what the loaded model must have.
    model: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    tokenizer: TokenizerConfig = TokenizerConfig()
    #: What is computed in. auto: float32 on a CPU, bfloat16 on an accelerator. Parameters that train, moments,
    #: gradients, logits and log-probabilities are float32 everywhere; ``trainer.checkpoint_dtype`` says what is saved.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


class OptimizerConfig(Section):
    """AdamW and its schedule."""

    #: Learning rate after the warm-up.
    lr: float = Field(1e-6, gt=0)
    #: Decay of the running means of the gradient and of its square.
    betas: tuple[float, float] = (0.9, 0.95)
    #: Of matrices; norms and biases have none.
    weight_decay: float = Field(0.0, ge=0)
    #: Steps in which the learning rate rises from 0.
    warmup_steps: int = Field(0, ge=0)
    #: How the learning rate falls after the warm-up.
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    #: Learning rate of the last step, as a share of lr; not of constant.
    final_lr_ratio: float = Field(0.1, ge=0, le=1)
    #: Gradients with a larger norm are scaled down to it.
    max_grad_norm: float = Field(1.0, gt=0)


class TrainingStage(Section):
    """What all stages that train share."""

    #: Name of the stage in overrides, folders and reports; other stages refer to it.
    name: str = Field(pattern=NAME)
    #: Optimizer steps; of a grpo stage batches of rollouts, each with ``updates_per_step`` optimizer steps.
    steps: int = Field(ge=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    #: Tokens that one micro-batch computes at most, a shared prompt counted once; changes memory and speed, never the
    #: loss.
    micro_batch_tokens: int = Field(16384, ge=1)
    #: Named set whose held-out problems are evaluated; default: those of the stage's own set, or ``data.heldout``.
    heldout: str | None = None
    #: Steps between held-out evaluations; 0 never, the last step always counts when it is not 0.
    eval_every: int = Field(0, ge=0)
    #: Held-out problems of each of these evaluations.
    eval_problems: int = Field(200, ge=1)
    eval_max_tokens: int = Field(64, ge=1)


class SftStage(TrainingStage):
    """Supervised fine-tuning on demonstrations."""

    kind: Literal["sft"]
    #: What the stage begins with: "policy" or "student" for the model of that table, or the name of an earlier stage,
    #: whose model is trained on. Default: the model trained last.
    model: str | None = None
    #: Named set that is trained on, or a mix of several with their shares; default ``data.train``.
    data: DataChoice | None = None
    batch_size: int = Field(64, ge=1)
    #: Distinct demonstrations; default: all that there are (a procedural task never runs out).
    demonstrations: int | None = Field(None, ge=1)


class GrpoStage(TrainingStage):
    """Group-relative policy optimisation with verified rewards."""

    kind: Literal["grpo"]
    model: str | None = None
    #: Named set that is trained on, or a mix of several with their shares; default ``data.train``.
    data: DataChoice | None = None
    #: Pass over problems that are always solved, and ask them again later; needs ``staleness = 0``.
    curriculum: CurriculumConfig | None = None
    #: Training problems to pass over first, such as those that the cold start showed.
    first_problem: int = Field(0, ge=0)
    problems_per_step: int = Field(ge=1)
    #: Completions drawn of each problem, which are a group: at least 2.
    samples_per_problem: int = Field(8)
    max_tokens: int = Field(ge=1)
    #: Divides the logits that completions are drawn from, and those of the trainer's log-probabilities.
    temperature: float = Field(1.0, gt=0)
    #: Must stay 1 in training: the trainer's log-probabilities are those of the full distribution.
    top_p: float = Field(1.0, gt=0, le=1)
    #: Must stay 0 in training: the trainer's log-probabilities are those of the full distribution.
    top_k: int = Field(0, ge=0)
    #: Optimizer steps on each batch of rollouts; more than 1 is off-policy and relies on the clip.
    updates_per_step: int = Field(1, ge=1)
    #: Do not compute completions whose advantage is 0 and that carry no KL term, such as those of groups of equal
    #: rewards. It saves time and changes nothing: statistics and denominators are of all completions.
    filter_zero_variance: bool = True
    #: Draw up to this many more batches of problems in a step, until ``problems_per_step`` groups have both correct and
    #: wrong completions, and learn from those (DAPO's dynamic sampling, arXiv 2503.14476). Needs staleness 0.
    resample: int = Field(0, ge=0)
    #: A preset's name, a table with ``preset`` and what differs from it, or a table of all that differs from DAPO.
    objective: Annotated[ObjectiveSpec, BeforeValidator(expand)] = ObjectiveSpec()
    #: Groups of each step kept in rollouts.jsonl; default: ``logging.rollouts.groups``.
    logged_groups: int | None = Field(None, ge=0)
    #: Versions that the weights may be ahead of those that began a group. 0: sampling and training take turns, exactly
    #: on-policy. 1: the next step's groups are drawn while this one is learnt from.
    staleness: int = Field(0, ge=0)
    #: With staleness: groups under way take new weights between two tokens, instead of ending with the old ones.
    in_flight_updates: bool = True
    #: Steps between splits of the sampler-trainer difference by cause (mismatch.jsonl); 0 never.
    diagnose_every: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: object) -> object:
        if isinstance(values, dict) and "drop_zero_variance" in values:
            raise ValueError(
                "drop_zero_variance is called filter_zero_variance now: it saves computing, and no longer changes "
                "denominators. DAPO's dynamic sampling is resample = N"
            )
        return values

    @model_validator(mode="after")
    def _possible(self) -> GrpoStage:
        if self.resample and self.staleness:
            raise ValueError(
                f"resample = {self.resample} draws more in the middle of a step, and staleness = {self.staleness} has "
                "the step drawn before it: use one of them"
            )
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
        weighed = self.objective.correction != "none" or self.objective.old == "sampler"
        if self.staleness and not weighed and self.objective.clip != "dppo_tv":
            raise ValueError(
                f"staleness = {self.staleness} trains on completions of older weights, and objective.correction = "
                '"none" would not weigh them: use correction = "tis" (the default), "mis" or "icepop", '
                'old = "sampler", or staleness = 0'
            )
        if self.staleness and self.curriculum is not None:
            raise ValueError(
                f"staleness = {self.staleness} asks for problems before it is known how the last ones went, so that a "
                "curriculum could not be resumed exactly: use staleness = 0 or no curriculum"
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
    #: Name of the stage in overrides, folders and reports; a distill stage refers to it by ``traces``.
    name: str = Field(pattern=NAME)
    #: Whose completions: "policy", "student", the name of a training stage, or of an endpoint, whose server is drawn
    #: from. Default: the model trained last.
    model: str | None = None
    #: Named set whose problems are drawn, or a mix of several with their shares; default ``data.train``.
    data: DataChoice | None = None
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
    #: Name of the stage in overrides, results and reports.
    name: str = Field(pattern=NAME)
    #: Names of training stages and endpoints, and policy or student.
    models: tuple[str, ...] = Field(min_length=1)
    #: Named set whose held-out problems are measured; default ``data.heldout``.
    data: str | None = None
    problems: int = Field(500, ge=1)
    samples_per_problem: int = Field(1, ge=1)
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    #: Draw from the most probable tokens only, so many of them; 0: from all.
    top_k: int = Field(0, ge=0)
    max_tokens: int = Field(ge=1)


Stage = Annotated[SftStage | GrpoStage | RejectStage | DistillStage | EvalStage, Field(discriminator="kind")]
RewardOption = Scalar | FromEnvironment | list[Scalar | list[Scalar]] | OptionTable
RewardTerm = float | dict[str, RewardOption]
#: The reward of a recipe that names none.
ACCURACY: dict[str, RewardTerm] = {"accuracy": 1.0}


class Recipe(AuditedRewards):
    """A whole run: models, data, rewards, engine and the stages in order."""

    #: Name of the recipe in reports and of its run directories.
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    #: One line for lists and reports.
    description: str = ""
    #: Fixes every random draw of the run.
    seed: int = Field(0, ge=0)
    #: The model that is trained.
    policy: PolicyConfig = PolicyConfig()
    #: A second model, which learns from the first.
    student: PolicyConfig | None = None
    #: OpenAI-compatible servers by name, each a model that ``reject`` and ``eval`` stages may draw from.
    endpoint: dict[str, EndpointConfig] = Field(default_factory=dict)
    trainer: TrainerConfig = TrainerConfig()
    data: DataConfig
    #: Rewards by name or plug-in, with their weights: ``accuracy = 1.0``, or with options
    #: ``format = { weight = 0.1, style = "boxed" }``. Beside them ``require_audit = true`` refuses a run whose rewards
    #: have no audit that they passed (`rlreason audit`), and ``audits`` names a folder or file of audits.
    reward: dict[str, RewardTerm] = Field(default_factory=lambda: dict(ACCURACY), json_schema_extra=KEYS_SCHEMA)
    sampler: SamplerConfig = SamplerConfig()
    cluster: ClusterConfig = ClusterConfig()
    health: HealthConfig = HealthConfig()
    logging: LoggingConfig = LoggingConfig()
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
        self._check_ranks()
        self._check_endpoint_names()
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
            self._check_data(stage)
            if isinstance(stage, RejectStage):
                rejects.append(stage.name)
            elif not isinstance(stage, EvalStage):
                trained.append(stage.name)
        return self

    def _check_ranks(self) -> None:
        trainer = self.trainer
        if trainer.offload and not trainer.ranks:
            raise ValueError("trainer.offload is of a sharded model: set trainer.ranks (1 is a single shard)")
        for stage in self.stage if trainer.ranks else ():
            if isinstance(stage, GrpoStage) and stage.diagnose_every:
                raise ValueError(
                    f"stage {stage.name!r}: diagnose_every looks at a model in this process: leave it out, or "
                    "trainer.ranks"
                )

    def _check_references(self, stage: Stage, trained: list[str], rejects: list[str]) -> None:
        models = stage.models if isinstance(stage, EvalStage) else (stage.model,)
        for model in models:
            if model in self.endpoint:
                self._check_endpoint_use(stage, model)
                continue
            if model == "student" and self.student is None:
                raise ValueError(f"stage {stage.name!r} trains the student, but the recipe has no [student] table")
            if model is not None and model not in {"policy", "student", *trained}:
                raise ValueError(
                    f"stage {stage.name!r}: model {model!r} is neither policy, student, an endpoint nor an earlier "
                    f"training stage ({', '.join(trained) or 'none yet'}){nearest(model, [*trained, *self.endpoint])}"
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
            self._check_teacher(stage, stage.traces or rejects[-1])

    def _check_data(self, stage: Stage) -> None:
        place = f"stage.{stage.name}."
        if isinstance(stage, (SftStage, GrpoStage, RejectStage)):
            self.data.check_choice(stage.data, place + "data")
        asked = (
            stage.data if isinstance(stage, EvalStage) else stage.heldout if isinstance(stage, TrainingStage) else None
        )
        if asked is not None:
            self.data.check_choice(asked, place + ("data" if isinstance(stage, EvalStage) else "heldout"))

    def _check_endpoint_names(self) -> None:
        taken = {"policy": "table", "student": "table"} | {stage.name: "stage" for stage in self.stage}
        for name in self.endpoint:
            if re.fullmatch(NAME, name) is None:
                raise ValueError(f"endpoint {name!r}: names are small letters, digits and _, such as teacher_32b")
            if name in taken:
                raise ValueError(f"endpoint {name!r} has the name of a {taken[name]}; give it one of its own")

    def _check_endpoint_use(self, stage: Stage, name: str) -> None:
        if not isinstance(stage, (EvalStage, RejectStage)):
            raise ValueError(
                f"stage {stage.name!r} trains its model, and {name!r} is an endpoint, whose weights are not ours; "
                "endpoints can be the model of reject and eval stages"
            )

    def _check_teacher(self, stage: DistillStage, traces: str) -> None:
        """A divergence from the teacher needs its distribution, not just its text."""
        model = next(one.model for one in self.stage if isinstance(one, RejectStage) and one.name == traces)
        if stage.teacher_kl > 0 and model in self.endpoint:
            raise ValueError(
                f"stage {stage.name!r}: teacher_kl = {stage.teacher_kl:g} needs the teacher's distribution, and the "
                f"traces are of the endpoint {model!r}, which gives text: use teacher_kl = 0"
            )
