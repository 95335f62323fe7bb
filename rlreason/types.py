"""Every noun that crosses a room. Standard library only; everyone imports this file, it imports no one.

Axes in names: G = completions of one group, T = tokens of one completion, B = rows of a batch,
L = layers, K = experts per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

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
    #: A demonstration for supervised stages: the reasoning and the final answer as they should be written.
    #: Both None where the data has none.
    thought: str | None = None
    answer: str | None = None


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
    max_tokens: int = 256
    seed: int = 0
    stream: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled answer, with what is needed to train on it and to say which weights drew it.

    Example::

        Completion(
            prompt_ids=(1, 9, 4),
            token_ids=(11, 12, 2),
            logprobs_T=(-0.1, -0.7, -0.01),
            text="3+5=8</think><answer>8</answer>",
            prefill="<think>",
            finish_reason="stop",
            policy_version_min=3,
            policy_version_max=3,
        )
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    #: log-probability of each sampled token under the sampling distribution (temperature applied), natural log.
    logprobs_T: tuple[float, ...]
    #: Generated text, special tokens included except the end-of-turn token.
    text: str
    finish_reason: Literal["stop", "length"]
    #: Assistant text that the chat template already wrote into the prompt, such as ``<think>``.
    prefill: str = ""
    policy_version_min: int = 0
    policy_version_max: int = 0
    #: Version of the weights that each token was drawn with; empty where all are ``policy_version_min``.
    policy_version_T: tuple[int, ...] = ()
    #: Experts that each layer with experts sent the position to which predicted each token, where the engine says so.
    routing_TLK: tuple[tuple[tuple[int, ...], ...], ...] | None = None

    @property
    def versions_T(self) -> tuple[int, ...]:
        """Version of the weights that drew each token."""
        return self.policy_version_T or (self.policy_version_min,) * len(self.token_ids)

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
    extracted: str | None = None
    #: Unweighted score of each part, before the weights of the recipe.
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

    @property
    def scores_G(self) -> tuple[float | None, ...]:
        """Mixed score of each completion; None where the check gave no verdict."""
        return tuple(reward.score for reward in self.rewards_G)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One training sequence. The three lists have one length; entry t describes token t.

    Example: ``Row(token_ids=(1, 9, 11, 2), loss_mask=(0, 0, 1, 1), sampler_logprobs=(0, 0, -0.1, -0.2),
    advantage=1.0, weight=0.125, group_id="grpo/3/p17")``. Prompt tokens have mask 0. ``weight`` is that of each of its
    loss tokens in the whole step's loss.
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    advantage: float = 0.0
    weight: float = 0.0
    group_id: str = ""

    @property
    def prompt_length(self) -> int:
        """Tokens before the first one with loss; all but the last where none has any."""
        return self.loss_mask.index(1) if 1 in self.loss_mask else len(self.token_ids) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Where the tokens of a packed micro-batch are: all prompts, each once, then what each row computes behind its own.

    Example for prompts (5, 6) and (7,), continued by two rows of 3 tokens and one of 1, none of which computes its
    last: tokens 5 6 7 a b c d, ``positions_L == (0, 1, 0, 2, 3, 2, 3)``, ``prompt_at_GP == ((0, 1), (2, 0))``,
    ``prompt_lengths_G == (2, 1)``, ``prompt_of_B == (0, 0, 1)``, ``row_at_BS == ((3, 4), (5, 6), (0, 0))``,
    ``source_BT == ((1, 3, 4), (1, 5, 6), (2, 0, 0))``. Places behind the end of a prompt or row are 0.
    """

    positions_L: Tensor
    prompt_at_GP: Tensor
    prompt_lengths_G: Tensor
    prompt_of_B: Tensor
    row_at_BS: Tensor
    #: Place of each token in the table of prompts, flattened, followed by that of rows.
    back_L: Tensor
    #: Place of the state that predicts each target.
    source_BT: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Tensors of one micro-batch, already shifted: row b predicts ``targets_BT[b, t]`` in column t, right-padded.

    Example: ``batch.targets_BT.shape == (8, 41)``; ``batch.loss_mask_BT`` is float32 0/1 over targets;
    ``batch.advantages_B1.shape == (8, 1)``: a sequence has one advantage and one token weight.
    """

    #: What the model reads: whole rows, [B, T]; or packed tokens, [1, L], and then the rows are completions only.
    token_ids_BT: Tensor
    targets_BT: Tensor
    loss_mask_BT: Tensor
    sampler_logprobs_BT: Tensor
    advantages_B1: Tensor
    weights_B1: Tensor
    packing: Packing | None = None
    #: Place of each row in what was cut into micro-batches.
    places: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """A scalar loss to call ``backward()`` on, and detached sums and maxima for the metrics.

    Example: ``LossOutput(loss=tensor(0.31), sums={"clip_fraction": tensor(12.0)}, maxima={"ratio/max": tensor(1.3)})``;
    divide a sum by the global token count to get the mean.
    """

    loss: Tensor
    sums: Mapping[str, Tensor]
    maxima: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One metrics line. Example: ``StepReport(stage="grpo", kind="grpo", step=3, policy_version=3,
    scalars={"reward/mean": 0.61, "length/mean": 31.2})``."""

    stage: str
    kind: str
    step: int
    policy_version: int
    scalars: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A proportion with its 95 % interval. Example: ``Interval(value=0.81, low=0.773, high=0.842, count=500)``."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """Result of one model on one suite.

    Example: ``EvalReport(model="grpo", suite="heldout", accuracy=Interval(...), pass_at_k={1: 0.81},
    verdicts={"correct": 405, "wrong": 95}, by_tag={"steps=3": Interval(...)}, mean_tokens=31.0)``.
    """

    model: str
    suite: str
    accuracy: Interval
    #: Unbiased pass@k (Chen et al. 2021, arXiv 2107.03374) for each k up to the samples drawn.
    pass_at_k: Mapping[int, float]
    verdicts: Mapping[str, int]
    by_tag: Mapping[str, Interval]
    mean_tokens: float
    parameters: int = 0


class Sampler(Protocol):
    """Draws completions with one version of the policy. Engines: ``rlreason.sampler``."""

    @property
    def version(self) -> int:
        """Version of the weights that the next token will be drawn with."""
        ...

    def sample(self, problems: Sequence[Problem], params: SamplingParams) -> list[Group]:
        """One group per problem, in order, each with ``params.samples_per_problem`` completions."""
        ...

    def publish(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Take over new weights; every later token is drawn with them and stamped ``version``."""
        ...


class Scorer(Protocol):
    """Gives every completion of every group its reward; never raises for what a completion contains."""

    def submit(self, group: Group) -> Future[Group]:
        """The group with ``rewards_G`` filled, some time: it waits for its own completions alone."""
        ...

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The same groups with ``rewards_G`` filled."""
        ...
