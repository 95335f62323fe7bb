"""Every noun that crosses a room. Standard library only; everyone imports this file, it imports no room.

Axes in names: G = completions of one group, P = prompt tokens, T = tokens of one completion or training sample,
L = layers with experts, K = experts per token, V = vocabulary. NumPy is imported where arrays are made, not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from rlreason.arrays import equal_fields, set_arrays
from rlreason.protocols import Sampler as Sampler  # noqa: PLC0414 (given on: they speak of the nouns below)
from rlreason.protocols import Scorer as Scorer  # noqa: PLC0414
from rlreason.reports import EvalReport as EvalReport  # noqa: PLC0414
from rlreason.reports import Interval as Interval  # noqa: PLC0414
from rlreason.reports import StepReport as StepReport  # noqa: PLC0414
from rlreason.token_sets import TokenSets as TokenSets  # noqa: PLC0414

if TYPE_CHECKING:
    from rlreason.arrays import BoolArray, ByteArray, FloatArray, IntArray

#: What a verifier checks against: one gold answer, several accepted ones, or structured data (tests, numbers…).
Reference = str | tuple[str, ...] | Mapping[str, object]


class Verdict(StrEnum):
    """What a reward concluded about one completion. ``TIMED_OUT`` and ``BROKEN`` are never ``WRONG``.

    CORRECT    the answer is right
    WRONG      an answer was found and is not right
    UNPARSED   no answer could be read from the completion
    TIMED_OUT  the check ran past its limit
    BROKEN     the check itself failed (a crashed worker, an unreadable reference): says nothing of the completion
    """

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"
    TIMED_OUT = "timed_out"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One chat turn. Example: ``Message(role="user", content="What is 3+4?")``."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One question with what is needed to check an answer to it.

    Example::

        Problem(
            id="arithmetic-train-17",
            prompt="3+5-2=",
            verifier="math",
            reference="6",
            source="arithmetic",
            tags=("steps=2",),
            thought="3+5=8;8-2=6",
            answer="6",
        )
    """

    id: str
    prompt: str
    verifier: str
    reference: Reference
    source: str = ""
    tags: tuple[str, ...] = ()
    #: Chat history used instead of ``prompt`` where the data has one; empty otherwise.
    messages: tuple[Message, ...] = ()
    #: A demonstration for supervised stages: the reasoning and the final answer as they should be written; without a
    #: thought, ``answer`` is the assistant's whole turn, taken as it is. Both None where the data has none.
    thought: str | None = None
    answer: str | None = None
    #: The recipe's [data.NAME] that it is of, and the columns of its row that nothing above was made of.
    data_set: str = field(default="", repr=False)
    extra: Mapping[str, object] = field(default_factory=dict, repr=False, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How completions are drawn. Temperature 0 means greedy.

    Example: ``SamplingParams(samples_per_problem=8, temperature=1.0, max_tokens=48, seed=0, stream="grpo/3")``.
    ``(seed, stream, problem id, sample index)`` fixes every random draw, whatever the batch it is drawn in.
    """

    samples_per_problem: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    #: Tokens less probable than this share of the most probable one are not drawn.
    min_p: float = 0.0
    max_tokens: int = 256
    seed: int = 0
    stream: str = ""
    #: What completions bring as ``sampled_from``: "ids" of all tokens that could be drawn, or those with "logprobs".
    record: Literal["", "ids", "logprobs"] = ""
    #: With "logprobs" of a draw that nothing truncates: of so many most probable tokens only. 0: of all.
    record_top: int = 0

    @property
    def truncated(self) -> bool:
        """Whether some tokens can't be drawn, however probable the model finds them."""
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """One sampled answer, with what is needed to train on it and to say which weights drew it.

    Arrays have one entry a generated token; whatever sequence is given is turned into the dtype below. A rollout of
    several turns is one completion whose ``loss_mask`` is False on what the policy did not write (tool outputs, user
    turns).

    Example::

        Completion(
            prompt_ids=(1, 9, 4),
            token_ids=(11, 12, 2),
            sampler_logprobs=(-0.1, -0.7, -0.01),
            text="3+5=8</think><answer>8</answer>",
            prefill="<think>",
            finish_reason="stop",
            policy_versions=3,
        )
    """

    #: int32 [P]; the completions of a group share one array.
    prompt_ids: IntArray
    #: int32 [T].
    token_ids: IntArray
    #: Log-probability of each token under the sampling distribution (temperature applied), natural log, float32 [T].
    #: None where the engine gives none (some endpoints): such a completion can be scored, not trained on.
    sampler_logprobs: FloatArray | None
    #: Generated text, special tokens included except the end-of-turn token.
    text: str
    finish_reason: Literal["stop", "length"]
    #: Assistant text that the chat template already wrote into the prompt, such as ``<think>``.
    prefill: str = ""
    #: Tokens that carry loss, bool [T]. None: all.
    loss_mask: BoolArray = None  # type: ignore[assignment]  # __post_init__ makes an array of it
    #: Version of the weights that each token was drawn with, int32 [T]; a number stands for all of them.
    policy_versions: IntArray = 0  # type: ignore[assignment]
    #: Log-probability of each token under a teacher, float32 [T].
    teacher_logprobs: FloatArray | None = None
    #: Experts that each layer with experts sent the position to that predicted each token, uint8 [T, L, K].
    routed_experts: ByteArray | None = None
    #: Those of the prompt's tokens before its last, which predicted the first token, uint8 [P − 1, L, K].
    prompt_experts: ByteArray | None = None
    #: What each token was drawn from, where it was asked for (``SamplingParams.record``); sets of T positions.
    sampled_from: TokenSets | None = None

    def __post_init__(self) -> None:
        """Give every array its dtype. Raises ValueError where one is not of the completion's length."""
        import numpy as np

        count = len(self.token_ids)
        mask: Any = self.loss_mask
        mask = np.ones(count, dtype=np.bool_) if mask is None else mask
        versions: Any = self.policy_versions
        versions = np.full(count, versions, dtype=np.int32) if isinstance(versions, int) else versions
        set_arrays(
            self,
            prompt_ids=(self.prompt_ids, np.int32, None),
            token_ids=(self.token_ids, np.int32, count),
            sampler_logprobs=(self.sampler_logprobs, np.float32, count),
            loss_mask=(mask, np.bool_, count),
            policy_versions=(versions, np.int32, count),
            teacher_logprobs=(self.teacher_logprobs, np.float32, count),
            routed_experts=(self.routed_experts, np.uint8, count),
            prompt_experts=(self.prompt_experts, np.uint8, None),
        )
        if self.sampled_from is not None and len(self.sampled_from.ends) != count:
            raise ValueError(f"Completion.sampled_from has {len(self.sampled_from.ends)} sets for {count} tokens")

    __eq__ = equal_fields
    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def from_text(cls, text: str) -> Completion:
        """A text that no engine of ours drew, to be scored: it has no tokens."""
        import numpy as np

        none = np.zeros(0, dtype=np.int32)
        return cls(prompt_ids=none, token_ids=none, sampler_logprobs=None, text=text, finish_reason="stop")

    @property
    def policy_version_min(self) -> int:
        """Oldest version that drew one of its tokens; 0 of an empty completion."""
        return int(min(self.policy_versions, default=0))

    @property
    def policy_version_max(self) -> int:
        """Newest version that drew one of its tokens; 0 of an empty completion."""
        return int(max(self.policy_versions, default=0))

    @property
    def response(self) -> str:
        """The whole assistant turn: what the template prefilled, then what was generated. Rewards read this."""
        return self.prefill + self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardResult:
    """A reward's answer about one completion. ``score`` None: excluded from baseline and loss, and counted.

    Example::

        RewardResult(score=1.1, verdict=Verdict.CORRECT, extracted="6", parts={"accuracy": 1.0, "format": 1.0})
    """

    score: float | None
    verdict: Verdict
    #: The verifier's own, whatever the other parts did: what accuracy counts. None: it gave none, or was not asked.
    verified: Verdict | None = None
    extracted: str | None = None
    #: Unweighted score of each part, before the weights of the recipe; a part's own parts are "part/name".
    parts: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All completions of one problem in one step. Identity is data: groups may be ragged.

    Example: ``Group(group_id="grpo/3/arithmetic-train-17", problem=..., completions_G=(c0, c1), rewards_G=(r0, r1))``.
    """

    group_id: str
    problem: Problem
    completions_G: tuple[Completion, ...]
    rewards_G: tuple[RewardResult, ...] = ()
    #: Which rollout each completion is of, where one was split into several (siblings): it counts once in its group.
    #: Empty: each is one of its own.
    rollouts_G: tuple[int, ...] = ()

    @property
    def scores_G(self) -> tuple[float | None, ...]:
        """Mixed score of each completion; None where the check gave no verdict."""
        return tuple(reward.score for reward in self.rewards_G)


#: The least that the rest of a distribution is said to be where it is one minus a sum of float32 numbers.
TAIL_FLOOR = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TeacherScores:
    """A teacher's distribution before each of T tokens: its states after the last norm, or its K most probable words.

    Example: ``TeacherScores(ids=[[4, 7]], logprobs=[[-0.2, -1.9]], log_tail=[-3.7])`` of one token.
    """

    #: float32 [T, H]; whose head the trainer has.
    states: FloatArray | None = None
    #: int32 and float32 [T, K], and float32 [T]: log of the probability of all other words.
    #: Of a teacher behind vLLM the rest is one minus a sum of float32 log-probabilities, and at least ``TAIL_FLOOR``.
    ids: IntArray | None = None
    logprobs: FloatArray | None = None
    log_tail: FloatArray | None = None

    def __post_init__(self) -> None:
        """Give every array its dtype."""
        import numpy as np

        set_arrays(
            self,
            states=(self.states, np.float32, None),
            ids=(self.ids, np.int32, None),
            logprobs=(self.logprobs, np.float32, None),
            log_tail=(self.log_tail, np.float32, None),
        )

    __eq__ = equal_fields
    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingSample:
    """One training sequence: prompt and completion. Every array has one length; entry t describes token t.

    Example: ``TrainingSample(token_ids=(1, 9, 11, 2), loss_mask=(0, 0, 1, 1), sampler_logprobs=(0, 0, -0.1, -0.2),
    advantages=(0, 0, 1, 1), weights=(0, 0, 0.125, 0.125), group_id="grpo/3/p17")``. Whatever sequence is given gets the
    dtype below; one number stands for all tokens.
    """

    #: int32 [T].
    token_ids: IntArray
    #: bool [T]; False on the prompt, and on tokens that the policy did not write.
    loss_mask: BoolArray
    #: float32 [T]: log-probability under the sampling distribution; 0 where masked.
    sampler_logprobs: FloatArray = 0.0  # type: ignore[assignment]  # __post_init__ makes an array of it
    #: float32 [T]: advantage of each token, where the loss has no scores that it is made of.
    advantages: FloatArray = 0.0  # type: ignore[assignment]
    #: float32 [T]: weight of each token in the whole step's loss, which is a plain sum over tokens.
    weights: FloatArray = 0.0  # type: ignore[assignment]
    #: float32 [T]: the trainer's own log-probability before the first update of the step. None: on-policy.
    old_logprobs: FloatArray | None = None
    #: float32 [T]: log-probability under the reference policy, where the objective has a KL term.
    reference_logprobs: FloatArray | None = None
    #: float32 [T]: log-probability under a teacher.
    teacher_logprobs: FloatArray | None = None
    #: What else a teacher that is not in the trainer said of the tokens.
    teacher: TeacherScores | None = None
    #: uint8 [T, L, K]: experts of the position that predicts each token; 255 in all K: the router's own choice.
    routed_experts: ByteArray | None = None
    #: What each token was drawn from; empty sets where masked. None: from the whole distribution, unrecorded.
    sampled_from: TokenSets | None = None
    #: Place of its rollout among the scores of the step (``objective.scores.StepScores``), of which the trainer makes
    #: its advantage. None: ``advantages`` stand.
    score_at: int | None = None
    group_id: str = ""

    def __post_init__(self) -> None:
        """Give every array its dtype. Raises ValueError where one is not of the sample's length."""
        import numpy as np

        count = len(self.token_ids)

        def spread(value: Any) -> Any:
            return np.full(count, value, dtype=np.float32) if isinstance(value, (int, float)) else value

        set_arrays(
            self,
            token_ids=(self.token_ids, np.int32, count),
            loss_mask=(self.loss_mask, np.bool_, count),
            sampler_logprobs=(spread(self.sampler_logprobs), np.float32, count),
            advantages=(spread(self.advantages), np.float32, count),
            weights=(spread(self.weights), np.float32, count),
            old_logprobs=(self.old_logprobs, np.float32, count),
            reference_logprobs=(self.reference_logprobs, np.float32, count),
            teacher_logprobs=(self.teacher_logprobs, np.float32, count),
            routed_experts=(self.routed_experts, np.uint8, count),
        )

    __eq__ = equal_fields
    __hash__ = None  # type: ignore[assignment]

    @property
    def prompt_length(self) -> int:
        """Tokens before the first one with loss; all but the last where none has any."""
        first = int(self.loss_mask.argmax()) if len(self.token_ids) else 0
        return first if len(self.token_ids) and bool(self.loss_mask[first]) else max(len(self.token_ids) - 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion to draw: the unit that samplers work on. Groups are put together by who asked.

    Example: ``Request(group_id="grpo/3/p17", sample=0, problem=Problem(...), params=SamplingParams(...))``.
    """

    group_id: str
    #: Its place in the group, from 0; with the seed, the stream and the problem's name it fixes every random draw.
    sample: int
    problem: Problem
    params: SamplingParams
    #: The oldest weights that its first token may be drawn with.
    min_version: int = 0

    @property
    def key(self) -> str:
        """Unique among the requests under way."""
        return f"{self.group_id}/{self.sample}"
