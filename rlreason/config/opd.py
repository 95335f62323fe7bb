"""On-policy distillation: the teachers of a recipe, the ``opd`` stage, and presets by the names others gave them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field, model_validator

from rlreason.config.data import DataChoice
from rlreason.config.engine import Section
from rlreason.config.grpo import GrpoStage
from rlreason.config.training import TrainingStage
from rlreason.errors import nearest
from rlreason.objective.distillation.spec import DistillationSpec

#: docs/distill.md has the table of whom each reproduces.
PRESETS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "opd_exact": {},
        "opd_engine": {"support": "tail", "k": 64},
        "opd_unbiased": {"support": "unbiased", "k": 16},
        "opd_sampled": {"support": "sampled"},
        "gkd": {"divergence": {"jsd": 0.5}, "on_policy": 0.5},
        "fixed_negative": {"advantage": "fixed", "value": -0.5, "lowest": 0.2},
        "opsa": {"advantage": "fixed_entropy", "lowest": 0.2},
    }
)


class TeacherConfig(Section):
    """A model whose distribution a student learns. Its weights never change."""

    #: "policy" or "student" (as the recipe has them before any training), or the name of a training stage.
    model: str | None = None
    #: Instead: folder, GGUF file or hub id.
    path: str | None = None
    #: trainer: beside the student, exact. worker: forward passes elsewhere, in a Ray actor where rollout workers are
    #: Ray's, else in this process; what it says travels to the trainer. vllm: an engine in a Ray actor.
    where: Literal["trainer", "worker", "vllm"] = "trainer"
    #: Of a worker. hidden: states after the last norm, exact, and its head once; the default. topk: its k most probable
    #: words and the mass of all others; of vllm the default. sampled: log-probability of the drawn token alone.
    payload: Literal["hidden", "topk", "sampled"] = "hidden"

    @model_validator(mode="before")
    @classmethod
    def _of_engine(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("where") == "vllm":
            return {"payload": "topk", **values}
        return values

    @model_validator(mode="after")
    def _one_origin(self) -> TeacherConfig:
        if (self.model is None) == (self.path is None):
            raise ValueError("a teacher has either model (a name of this recipe) or path (a folder or hub id)")
        if self.where == "vllm" and self.payload == "hidden":
            raise ValueError(
                'payload = "hidden" is of a teacher with where = "worker": vLLM says words, so leave payload out '
                '(topk) or say "sampled"'
            )
        if self.where == "trainer" and self.payload != "hidden":
            raise ValueError(
                f'payload = "{self.payload}" is of a teacher elsewhere: say where = "worker", or leave payload out'
            )
        return self

    def gives(self, support: str) -> bool:
        """Whether a loss with this support can be computed from what it says."""
        if self.where == "trainer":
            return support == "full"
        return {
            "hidden": support == "full",
            "topk": support in ("tail", "unbiased", "sampled"),
            "sampled": support == "sampled",
        }[self.payload]


class OpdStage(TrainingStage):
    """On-policy distillation: the student draws, teachers score its own tokens (docs/distill.md)."""

    kind: Literal["opd"]
    #: What the stage begins with, as in sft stages.
    model: str | None = "student"
    #: Named set whose problems are drawn, or a mix of several with their shares; default ``data.train``.
    data: DataChoice | None = None
    #: Training problems to pass over first.
    first_problem: int = Field(0, ge=0)
    #: Name of a [teacher.NAME] table; default: the only one.
    teacher: str | None = None
    #: Instead, for several teachers: tag or set of a problem -> its teacher, such as { math = "math", code = "code" }.
    route: dict[str, str] = Field(default_factory=dict)
    #: Of routed teachers: what the loss of each one's rows is multiplied with; default 1.
    weights: dict[str, float] = Field(default_factory=dict)
    #: Names a set of the keys below, which stand beside it win: opd_exact, opd_engine, opd_unbiased, opd_sampled, gkd,
    #: fixed_negative, opsa.
    preset: str | None = None
    #: reverse: KL(student || teacher). forward: KL(teacher || student). { jsd = β }: GKD's J_β.
    divergence: Literal["forward", "reverse"] | dict[Literal["jsd"], float] = "reverse"
    #: full: all shared words. tail: the teacher's k most probable and one word for the rest. unbiased: those exactly
    #: and the rest by the drawn token. sampled: the drawn token alone.
    support: Literal["full", "tail", "unbiased", "sampled"] = "full"
    #: Words of the support, of tail and unbiased.
    k: int = Field(64, ge=1)
    #: log of the teacher's probabilities is at least this, with every support; default: a token that has no finite
    #: divergence stops the run where the teacher is in the trainer, and is left out where it is elsewhere.
    floor: float | None = Field(None, lt=0)
    #: Largest weight p/μ of a drawn token, of unbiased and sampled.
    ratio_cap: float = Field(2.0, gt=0)
    #: Share of a step's problems that the student answers; the others are rows of ``traces`` (GKD's λ).
    on_policy: float = Field(1.0, ge=0, le=1)
    #: Name of the ``reject`` stage whose traces those are; default the last one.
    traces: str | None = None
    #: teacher: learn from one. fixed: advantage ``value`` on the least probable tokens and no teacher (arXiv
    #: 2608.31046). fixed_entropy: −½ to −1 by the entropy there (OPSA).
    advantage: Literal["teacher", "fixed", "fixed_entropy"] = "teacher"
    #: The advantage of fixed.
    value: float = -0.5
    #: Share of each response's tokens, the least probable first, that fixed advantages are of.
    lowest: float = Field(0.2, gt=0, le=1)
    #: Weight of a GRPO loss with the recipe's reward, added as a separate sum; 0: none.
    reward_weight: float = Field(0.0, ge=0)
    problems_per_step: int = Field(ge=1)
    samples_per_problem: int = Field(1, ge=1)
    max_tokens: int = Field(ge=1)
    #: Of the draws; other than 1 with direct losses (full, tail) only.
    temperature: float = Field(1.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        for old, new in (("lambda", "on_policy"), ("clamp", ""), ("staleness", "")):
            if old in values:
                raise ValueError(
                    f"{old} is called {new} here"
                    if new
                    else f"{old}: an opd stage has none: its rows are the newest weights' own, and no value is cut"
                )
        name = values.get("preset")
        if name is None:
            return values
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}{nearest(str(name), PRESETS)}; known: {', '.join(PRESETS)}")
        return {**PRESETS[name], **values}

    @model_validator(mode="after")
    def _nothing_unread(self) -> OpdStage:
        """A key with another value than its default is read by the loss that the stage has."""
        teacher = self.advantage == "teacher"
        no_teacher = f'advantage = "{self.advantage}", which learns from no teacher'
        support = f'support = "{self.support}"'
        readers = {
            "divergence": (teacher, no_teacher),
            "support": (teacher, no_teacher),
            "floor": (teacher, no_teacher),
            "k": (teacher and self.support in ("tail", "unbiased"), support if teacher else no_teacher),
            "ratio_cap": (teacher and self.spec.needs_drawn, support if teacher else no_teacher),
            "value": (self.advantage == "fixed", f'advantage = "{self.advantage}"'),
            "lowest": (not teacher, 'advantage = "teacher"'),
            "traces": (self.on_policy < 1, f"on_policy = {self.on_policy:g}, where all rows are the student's"),
        }
        brought = {} if self.preset is None else PRESETS[self.preset]
        for key, (read, why_not) in readers.items():
            if not read and getattr(self, key) != type(self).model_fields[key].default:
                where = f', or preset = "{self.preset}", which brings it' if key in brought else ""
                raise ValueError(f"{key} changes nothing with {why_not}: leave it out{where}")
        return self

    @model_validator(mode="after")
    def _possible(self) -> OpdStage:
        spec = self.spec  # which refuses what would be another loss
        if self.advantage != "teacher":
            if self.teacher is not None or self.route:
                raise ValueError(f'advantage = "{self.advantage}" has no teacher: leave teacher and route out')
            if self.on_policy < 1 or self.reward_weight:
                raise ValueError(f'advantage = "{self.advantage}" is of drawn rows alone: on_policy = 1, no reward')
        if self.teacher is not None and self.route:
            raise ValueError("teacher is for one, route for several: use one of them")
        if stray := self.weights.keys() - set(self.route.values()):
            raise ValueError(f"weights names {sorted(stray)[0]!r}, which route sends nothing to")
        if spec.needs_drawn and self.temperature != 1.0:
            raise ValueError(
                f'support = "{self.support}" needs tokens drawn from the student\'s own distribution, and temperature '
                f"= {self.temperature:g} draws from another: use temperature = 1"
            )
        if spec.needs_drawn and self.on_policy < 1:
            raise ValueError(
                f'support = "{self.support}" needs rows that the student drew, and on_policy = {self.on_policy:g} '
                'mixes traces in: use support = "full" or "tail"'
            )
        if self.on_policy < 1 and self.route:
            raise ValueError("traces have no tags to route by: on_policy below 1 takes one teacher")
        if self.reward_weight and self.samples_per_problem < 2:
            raise ValueError("reward_weight needs groups: samples_per_problem of at least 2")
        return self

    @property
    def longest_evaluated(self) -> int:
        """See ``TrainingStage.longest_evaluated``."""
        return self.eval_max_tokens or self.max_tokens

    @property
    def spec(self) -> DistillationSpec:
        """The loss of a token. Raises ValueError for one that does not exist."""
        named = self.divergence
        jsd = named["jsd"] if isinstance(named, dict) else 0.5
        return DistillationSpec(
            divergence="jsd" if isinstance(named, dict) else named,
            beta=jsd,
            support=self.support,
            ratio_cap=self.ratio_cap,
            floor=self.floor,
        )

    def teachers(self, known: Mapping[str, TeacherConfig]) -> tuple[str, ...]:
        """Names of the teachers it asks, each once. Raises ValueError for one that is not there."""
        if self.advantage != "teacher":
            return ()
        asked = tuple(dict.fromkeys(self.route.values())) or ((self.teacher,) if self.teacher else tuple(known))
        for name in asked:
            if name not in known:
                raise ValueError(f"teacher {name!r} has no [teacher.{name}] table{nearest(name, known)}")
        if not asked:
            raise ValueError("an opd stage learns from a [teacher.NAME] table, and the recipe has none")
        if len(asked) > 1 and not self.route:
            raise ValueError(
                f"the recipe has the teachers {', '.join(known)}: say which (teacher), or route tags to them (route)"
            )
        return asked

    def grpo(self) -> GrpoStage:
        """The reward's part as a GRPO stage of the same draws."""
        return GrpoStage(
            kind="grpo",
            name=self.name,
            steps=self.steps,
            problems_per_step=self.problems_per_step,
            samples_per_problem=self.samples_per_problem,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
        )
