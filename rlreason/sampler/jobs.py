"""What the trainer's process and a rollout worker say to each other: plain data, no tensor but the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from rlreason.types import Completion, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

    from rlreason.arrays import IntArray

EngineKind = Literal["transformers", "vllm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmOptions:
    """What vLLM is built with, beside the model. ``kv_cache_bytes`` None: as vLLM chooses on a GPU, 256 MiB on a CPU.

    Example: ``VllmOptions(tensor_parallel=2, gpu_memory_utilization=0.9)``.
    """

    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    tensor_parallel: int = 1
    enforce_eager: bool = False
    sleep_mode: bool = False
    #: Bytes of the GPU that its other user will yet take.
    beside: int = 0
    #: Every request brings its seed; otherwise each engine draws by a generator of its own, begun anywhere.
    request_seeds: bool = True
    #: Further fields of ``vllm.EngineArgs``, as they are.
    settings: Mapping[str, object] = field(default_factory=dict)
    #: Class that receives the weights inside of vLLM's worker process.
    extension: str = "rlreason.sampler.vllm_extension.WeightReceiver"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """An engine to build: the model's config as a dict (its weights are delivered later), and how it samples.

    Example: ``EngineSpec(kind="vllm", model=model.config.to_dict(), dtype="float32", stop_ids=(1,), pad_id=0)``.
    """

    kind: EngineKind
    model: Mapping[str, object]
    dtype: str
    stop_ids: tuple[int, ...]
    pad_id: int
    #: Completions decoded together.
    max_rows: int = 512
    #: Longest prompt and completion together; None: the model's own limit.
    max_length: int | None = None
    #: CPU threads of a transformers engine, each on a batch of completions.
    threads: int = 1
    vllm: VllmOptions = VllmOptions()
    #: Have completions say which experts their tokens were sent to; of a model that has some.
    experts: bool = False
    #: Routers compute in float32, and their weights come so; of the transformers engine.
    float32_routers: bool = False

    @property
    def longest(self) -> int:
        """``max_length``, or the model's own limit."""
        return self.max_length or int(str(self.model["max_position_embeddings"]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One completion to draw.

    Example: ``Job(key="grpo/3/p17/0", group_id="grpo/3/p17", problem_id="p17", sample=0, prompt_ids=array([1, 9, 4]),
    params=...)``. Engines may compute the prompt once for the jobs of a group; they share one array.
    """

    key: str
    group_id: str
    #: With ``sample``, ``params.seed`` and ``params.stream`` it fixes every random draw.
    problem_id: str
    sample: int
    #: int32 [P].
    prompt_ids: IntArray
    params: SamplingParams
    #: The oldest weights that its first token may be drawn with.
    min_version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A finished job: its completion, without text. Example: ``Drawn(key="grpo/3/p17/0", completion=...)``."""

    key: str
    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What one ``advance`` brought: completions that are done, and the engine steps it took."""

    drawn: tuple[Drawn, ...]
    steps: int

    def __reduce__(self) -> tuple[Any, ...]:
        """On its way to another process: the arrays of all completions in one piece each, and no prompts, which are
        known there."""
        completions = [one.completion for one in self.drawn]
        rest = [
            (
                one.finish_reason,
                None if one.loss_mask.all() else one.loss_mask,
                one.teacher_logprobs,
                (one.routed_experts, one.prompt_experts),
                one.sampled_from,
            )
            for one in completions
        ]
        arrays = (
            _joined([one.token_ids for one in completions], np.int32),
            _joined([one.sampler_logprobs for one in completions if one.sampler_logprobs is not None], np.float32),
            _joined([one.policy_versions for one in completions], np.int32),
        )
        lengths = [(len(one.token_ids), one.sampler_logprobs is not None) for one in completions]
        return _unpacked, (self.steps, [one.key for one in self.drawn], lengths, arrays, rest)


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=dtype), *arrays])


def _unpacked(
    steps: int,
    keys: Sequence[str],
    lengths: Sequence[tuple[int, bool]],
    arrays: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]],
    rest: Sequence[tuple[Any, Any, Any, Any, Any]],
) -> Progress:
    """What ``Progress.__reduce__`` made."""
    token_ids, logprobs, versions = (array.copy() for array in arrays)  # what Ray holds may not be written to
    nothing = np.zeros(0, dtype=np.int32)
    drawn, at, logprobs_at = [], 0, 0
    for key, (length, has_logprobs), (finish_reason, loss_mask, teacher_logprobs, experts, sets) in zip(
        keys, lengths, rest, strict=True
    ):
        completion = Completion(
            prompt_ids=nothing,
            token_ids=token_ids[at : at + length],
            sampler_logprobs=logprobs[logprobs_at : logprobs_at + length] if has_logprobs else None,
            text="",
            finish_reason=finish_reason,
            policy_versions=versions[at : at + length],
            loss_mask=loss_mask,
            teacher_logprobs=teacher_logprobs,
            routed_experts=experts[0],
            prompt_experts=experts[1],
            sampled_from=sets,
        )
        drawn.append(Drawn(key=key, completion=completion))
        at += length
        logprobs_at += length if has_logprobs else 0
    return Progress(drawn=tuple(drawn), steps=steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeAnswer:
    """The most likely tokens after a probe's prompt. Example: ``ProbeAnswer(token_ids=(4,), logprobs=(-0.2,))``."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class Engine(Protocol):
    """One copy of the policy that draws completions. Engines hold no tokenizer: ids in, ids out."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take on jobs; nothing is drawn yet."""
        ...

    def advance(self, seconds: float, steps: int | None = None) -> Progress:
        """Draw until all is done or ``seconds`` have passed; with ``steps``, for exactly so many engine steps."""
        ...

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> tuple[str, ...]:
        """Take over weights between two tokens; completions under way go on with them. Returns names that got none.

        ``weights`` arrive while they are asked for, once; where they raise, all are delivered again."""
        ...

    def probe(self, prompts: Sequence[tuple[int, ...]], count: int) -> tuple[ProbeAnswer, ...]:
        """What the weights in use say after each prompt, through the same caches as any completion."""
        ...

    def module_outputs(self, prompt_ids: tuple[int, ...]) -> Mapping[str, Tensor]:
        """Output of each attention, MLP and norm while it reads the prompt, [T, H] float32, in the order of use."""
        ...

    def sleep(self) -> None:
        """Give the accelerator's memory back until ``wake``; weights must be delivered again."""
        ...

    def wake(self) -> None:
        """The opposite of ``sleep``."""
        ...

    def abort(self) -> None:
        """Forget all jobs."""
        ...

    def interrupt(self) -> None:
        """From another thread: have an ``advance`` that takes long return soon. What it did not finish is forgotten."""
        ...

    def close(self) -> None:
        """Free what the engine holds; it is not used again."""
        ...
