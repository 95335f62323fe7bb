"""The schema of a recipe: models, data, rewards and the stages in order; the other tables are in ``engine``.

A recipe is complete and read once. Every default stands in these two files and nowhere else.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlreason.config.data import DataChoice, DataConfig, Scalar
from rlreason.config.engine import ClusterConfig, EndpointConfig, SamplerConfig, Section, TrainerConfig
from rlreason.config.grpo import GrpoStage
from rlreason.config.health import HealthConfig
from rlreason.config.logging import LoggingConfig
from rlreason.config.opd import OpdStage, TeacherConfig
from rlreason.config.reward_audit import KEYS_SCHEMA, AuditedRewards
from rlreason.config.reward_terms import ACCURACY, RewardTable
from rlreason.config.traces import TraceFilters
from rlreason.config.training import NAME, SupervisedStage, TrainingStage, check_rate, stage_of
from rlreason.errors import nearest


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
    #: Architecture by transformers' name; with ``path``, what the loaded model must be, where it is not the default.
    model_type: str = "qwen3_moe"
    #: Passed to the transformers config class of ``model_type``; with ``path``, what the loaded model must have.
    model: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    tokenizer: TokenizerConfig = TokenizerConfig()
    #: What is computed in. auto: float32 on a CPU, bfloat16 on an accelerator. Parameters that train, moments,
    #: gradients, logits and log-probabilities are float32 everywhere; ``trainer.checkpoint_dtype`` says what is saved.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


class SftStage(SupervisedStage):
    """Supervised fine-tuning on demonstrations."""

    kind: Literal["sft"]
    #: What the stage begins with: "policy" or "student" for the model of that table, or the name of an earlier stage,
    #: whose model is trained on. Default: the model trained last.
    model: str | None = None
    #: Named set that is trained on, or a mix of several with their shares; default ``data.train``.
    data: DataChoice | None = None
    #: Distinct demonstrations; default: all that there are (a procedural task never runs out).
    demonstrations: int | None = Field(None, ge=1)
    #: First steps, in which only the routers of a mixture of experts learn, such as those that upcycling made; not of
    #: an adapter, which leaves them as they are.
    router_warmup_steps: int = Field(0, ge=0)


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
    #: Distinct correct completions kept of one problem; with filters over all passes over the data, else of each.
    keep_per_problem: int = Field(1, ge=1)
    #: Filters beside correct and finished, with an exact ledger and a card (docs/distill.md); an empty table takes the
    #: defaults. Default: none, and traces are kept as they are drawn.
    filters: TraceFilters | None = None
    #: Write what was not kept to traces_rejected.jsonl, with the first reason; needs filters.
    keep_rejected: bool = False
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    max_tokens: int = Field(ge=1)


class DistillStage(SupervisedStage):
    """Supervised training of a student on traces of rejection sampling, optionally on the teacher's distribution."""

    kind: Literal["distill"]
    model: str | None = "student"
    #: Name of the ``reject`` stage; default the last one.
    traces: str | None = None
    #: Instead: a folder of traces that another run's reject stage or `rlreason traces import FILE FOLDER` made.
    trace_set: str | None = None
    #: Which rows of a reject stage with filters: kept, wrong (stopped as incorrect alone), or all that were drawn.
    which: Literal["kept", "wrong", "all"] = "kept"
    #: Named set whose demonstrations are mixed into the traces, or a mix of several, as R1 does with general data.
    general: DataChoice | None = None
    #: Their share of the tokens with loss; R1's is 5.9 %, of the rows 22 %.
    general_share: float = Field(0.06, gt=0, lt=1)
    #: Weight of KL(teacher || student) on the traces, between 0 (traces only) and 1; needs one tokenizer for both.
    teacher_kl: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _shares_something(self) -> DistillStage:
        if self.general is None and self.general_share != type(self).model_fields["general_share"].default:
            raise ValueError(f"general_share = {self.general_share:g} is of general, which names no set: name one")
        return self


class EvalStage(Section):
    """Measure models on held-out problems."""

    kind: Literal["eval"]
    #: Name of the stage in overrides, results and reports.
    name: str = Field(pattern=NAME)
    #: Names of training stages and endpoints, and policy or student; grpo@best is the best checkpoint of grpo.
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


Stage = Annotated[SftStage | GrpoStage | RejectStage | DistillStage | OpdStage | EvalStage, Field(discriminator="kind")]


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
    #: Models by name that opd stages learn from.
    teacher: dict[str, TeacherConfig] = Field(default_factory=dict)
    trainer: TrainerConfig = TrainerConfig()
    data: DataConfig
    #: Rewards by name or plug-in, with their weights: ``accuracy = 1.0``, or with options
    #: ``format = { weight = 0.1, style = "boxed" }``. Beside them ``require_audit = true`` refuses a run whose rewards
    #: have no audit that they passed (`rlreason audit`), and ``audits`` names a folder or file of audits.
    reward: RewardTable = Field(default_factory=lambda: dict(ACCURACY), json_schema_extra=KEYS_SCHEMA)
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
        if self.cluster.colocate is True and any(isinstance(one, GrpoStage) and one.staleness for one in self.stage):
            raise ValueError(
                "cluster.colocate takes turns on one GPU, and staleness > 0 samples while the policy learns: use one"
            )
        self._check_ranks()
        self._check_best()
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
            if isinstance(stage, TrainingStage):
                check_rate(stage, lora=self.trainer.lora is not None and stage.lora)
            self._check_references(stage, trained, rejects)
            self._check_data(stage)
            if isinstance(stage, RejectStage):
                rejects.append(stage.name)
            elif not isinstance(stage, EvalStage):
                trained.append(stage.name)
        return self

    def reward_of(self, stage: Stage) -> RewardTable:
        """What scores the completions of ``stage``."""
        own = stage.reward if isinstance(stage, GrpoStage) else None
        return self.reward if own is None else own

    @property
    def reward_tables(self) -> dict[str, RewardTable]:
        """Every table of rewards by its place in the recipe."""
        own = {f"stage.{one.name}.reward": self.reward_of(one) for one in self.stage if self.has_own_reward(one)}
        return {"reward": self.reward, **own}

    @staticmethod
    def has_own_reward(stage: Stage) -> bool:
        """Whether ``stage`` is scored by another table than ``[reward]``."""
        return isinstance(stage, GrpoStage) and stage.reward is not None

    def _check_best(self) -> None:
        evaluates = any(isinstance(stage, TrainingStage) and stage.eval_every for stage in self.stage)
        if self.trainer.best_metric == "accuracy/heldout" and not evaluates:
            raise ValueError(
                'trainer.best_metric = "accuracy/heldout" is measured by the evaluations of a training stage: give one '
                "eval_every"
            )

    def _check_ranks(self) -> None:
        trainer = self.trainer
        if trainer.offload and not trainer.ranks:
            raise ValueError("trainer.offload is of a sharded model: set trainer.ranks (1 is a single shard)")
        for key, size in (("tensor_parallel", trainer.tensor_parallel), ("expert_parallel", trainer.expert_parallel)):
            if size > 1 and (trainer.ranks == 0 or trainer.ranks % size):
                raise ValueError(f"trainer.{key} = {size} must divide trainer.ranks = {trainer.ranks}")
            if size > 1 and trainer.lora is not None:
                raise ValueError(f"trainer.{key} is for training all weights: leave it out, or trainer.lora")
        if trainer.expert_parallel > 1 and trainer.expert_parallel % trainer.tensor_parallel:
            raise ValueError(
                f"trainer.expert_parallel = {trainer.expert_parallel} must be a multiple of trainer.tensor_parallel = "
                f"{trainer.tensor_parallel}"
            )
        if self.sampler.delivery == "adapter" and trainer.lora is None:
            raise ValueError('sampler.delivery = "adapter" sends an adapter: train one ([trainer.lora]) or say "full"')
        for stage in self.stage if trainer.lora is not None else ():
            if isinstance(stage, GrpoStage) and stage.reference_every and stage.lora:
                raise ValueError(
                    f"stage {stage.name!r}: reference_every replaces the reference by the policy, and with "
                    "trainer.lora the reference is the model without the adapter: leave it out, or say lora = false "
                    "in the stage"
                )
            if isinstance(stage, SftStage) and stage.router_warmup_steps and stage.lora:
                raise ValueError(
                    f"stage {stage.name!r}: router_warmup_steps trains the routers alone, which trainer.lora "
                    "freezes, so that nothing would learn: leave it out, or say lora = false in the stage"
                )
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
            if model is not None and not self._is_model(model, trained):
                raise ValueError(
                    f"stage {stage.name!r}: model {model!r} is neither policy, student, an endpoint nor an earlier "
                    f"training stage ({', '.join(trained) or 'none yet'}){nearest(model, [*trained, *self.endpoint])}"
                )
        if isinstance(stage, RejectStage) and stage.temperature == 0 and stage.samples_per_problem > 1:
            raise ValueError(
                f"stage {stage.name!r}: at temperature 0 all {stage.samples_per_problem} samples are equal"
            )
        if isinstance(stage, RejectStage) and stage.keep_rejected and stage.filters is None:
            raise ValueError(f"stage {stage.name!r}: keep_rejected needs filters: filters = {{}} takes the defaults")
        if isinstance(stage, DistillStage):
            self._check_distill(stage, rejects)
        if isinstance(stage, OpdStage):
            self._check_opd(stage, trained, rejects)

    def _check_distill(self, stage: DistillStage, rejects: list[str]) -> None:
        if stage.trace_set is not None:
            if stage.traces is not None or stage.teacher_kl > 0 or stage.which != "kept":
                raise ValueError(
                    f"stage {stage.name!r}: trace_set is a folder of kept traces alone: leave traces, teacher_kl and "
                    "which out"
                )
            return
        if not rejects:
            raise ValueError(
                f"stage {stage.name!r} needs the traces of an earlier stage of kind reject, or of a folder (trace_set)"
            )
        if stage.traces is not None and stage.traces not in rejects:
            raise ValueError(
                f"stage {stage.name!r}: traces {stage.traces!r} is no earlier reject stage "
                f"({', '.join(rejects)}){nearest(stage.traces, rejects)}"
            )
        self._check_teacher(stage, stage.traces or rejects[-1])
        source = next(one for one in self.stage if one.name == (stage.traces or rejects[-1]))
        if stage.which != "kept" and isinstance(source, RejectStage) and source.filters is None:
            raise ValueError(
                f"stage {stage.name!r}: which = {stage.which!r} reads all draws, which {source.name!r} keeps with "
                "filters only: give it filters = {}"
            )

    def _is_model(self, name: str, trained: list[str]) -> bool:
        """Whether ``name`` is policy, student, a stage of ``trained`` or such a stage's best checkpoint."""
        if name.endswith("@best") and stage_of(name) in trained and self.trainer.best_metric is None:
            raise ValueError(f"{name!r} is a best checkpoint, and trainer.best_metric doesn't say by which metric")
        return name in {"policy", "student", *trained, *(f"{one}@best" for one in trained)}

    def _check_opd(self, stage: OpdStage, trained: list[str], rejects: list[str]) -> None:
        where = f"stage {stage.name!r}: "
        try:
            names = stage.teachers(self.teacher)
        except ValueError as error:
            raise ValueError(f"{where}{error}") from error
        asked = {name for one in self.stage if isinstance(one, OpdStage) for name in one.teachers(self.teacher)}
        if stage.route and (silent := sorted(self.teacher.keys() - asked)):
            raise ValueError(
                f"{where}route sends nothing to the teacher {silent[0]!r}: name it there, or take its table out"
            )
        for name in names:
            one = self.teacher[name]
            if one.model is not None and not self._is_model(one.model, trained):
                raise ValueError(
                    f"{where}teacher.{name}.model = {one.model!r} is neither policy, student nor an earlier training "
                    f"stage ({', '.join(trained) or 'none yet'}){nearest(one.model, trained)}"
                )
            if not one.gives(stage.support):
                gives = [support for support in ("full", "tail", "unbiased", "sampled") if one.gives(support)]
                exact = stage.support == "full"
                raise ValueError(
                    f'{where}support = "{stage.support}" can\'t be computed from the teacher {name!r} '
                    f'(where = "{one.where}", payload = "{one.payload}"), which gives {" or ".join(gives)}: say that, '
                    + (
                        'or where = "trainer", whose logits are whole'
                        if exact
                        else 'or where = "worker", payload = "topk"'
                    )
                )
            if one.where == "vllm" and self.cluster.kind == "inline":
                raise ValueError(
                    f'{where}the teacher {name!r} is an engine in a Ray actor (where = "vllm"), and cluster.kind = '
                    '"inline" starts no Ray: say cluster.kind = "ray", or where = "worker"'
                )
        if stage.on_policy < 1 and (not rejects or stage.traces not in {None, *rejects}):
            raise ValueError(
                f"{where}on_policy = {stage.on_policy:g} mixes traces in: of an earlier stage of kind reject "
                f"({', '.join(rejects) or 'none yet'})"
            )

    def _check_data(self, stage: Stage) -> None:
        place = f"stage.{stage.name}."
        if isinstance(stage, (SftStage, GrpoStage, RejectStage, OpdStage)):
            self.data.check_choice(stage.data, place + "data")
        if isinstance(stage, DistillStage) and stage.general is not None:
            self.data.check_choice(stage.general, place + "general")
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
