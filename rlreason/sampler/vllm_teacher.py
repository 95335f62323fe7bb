"""A teacher behind vLLM, in a Ray actor of its own: its most probable words of every token that a student drew.

vLLM names the k most probable words of a place and says log q of the token itself (``prompt_logprobs``); the mass of
all others is one minus the sum, in float64. T = tokens of a sample, K = words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch

from rlreason.cluster.actor import check_gpus
from rlreason.errors import UsageError
from rlreason.sampler.canary import COUNT, Canary
from rlreason.sampler.jobs import VllmOptions
from rlreason.sampler.open import ServedModel, engine_spec, why_not_vllm
from rlreason.sampler.vllm_engine import VllmEngine
from rlreason.types import TAIL_FLOOR, TeacherScores, TrainingSample

#: Tokens of a step of the engine: vLLM makes whole logits of them, and counts that memory nowhere (at V = 151,936 and 6
#: bytes a logit 1.9 GB).
STEP_TOKENS = 2048
#: Rows that are scored together.
ROWS = 256


class ModelFiles(Protocol):
    """Where a model comes from (``policy.policies.PolicySource``)."""

    def load(self, dtype: torch.dtype, device: torch.device) -> ServedModel:
        """The model with its weights."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmTeacherSpec:
    """A teacher and what it is asked for. Example: ``VllmTeacherSpec(source=..., dtype=torch.bfloat16, k=64,
    shared=151665, payload="topk")``."""

    source: ModelFiles
    dtype: torch.dtype
    payload: Literal["topk", "sampled"]
    #: Words that it names for each token.
    k: int
    #: Ids below it are one word to teacher and student: its softmax is over those alone.
    shared: int
    #: Longest row; None: the model's own limit.
    max_length: int | None = None
    kv_cache_bytes: int | None = None


class VllmTeacher:
    """The engine, in this process. Keep it in one of its own, as ``VllmEngine`` says."""

    def __init__(self, spec: VllmTeacherSpec) -> None:
        """Raises UsageError for a model that vLLM can't run, and where it does not say what transformers says of it."""
        on_gpu = torch.cuda.is_available()
        model = spec.source.load(spec.dtype, torch.device("cpu"))
        if why_not := why_not_vllm(model, on_gpu=on_gpu):
            raise UsageError(f'a teacher with where = "vllm": {why_not}; say where = "worker"')
        self._words = min(spec.shared, model.vocabulary)
        self._count = min(spec.k, self._words) if spec.payload == "topk" else 0
        settings = {
            "max_logprobs": max(self._count, COUNT) + 1,
            "max_num_batched_tokens": STEP_TOKENS,
            "enable_chunked_prefill": True,
            "enable_prefix_caching": False,
        }
        # request_seeds: nothing is drawn, and chunks of a prompt then change nothing.
        options = VllmOptions(settings=settings, request_seeds=False, kv_cache_bytes=spec.kv_cache_bytes)
        made = engine_spec("vllm", model, max_rows=ROWS, max_length=spec.max_length, vllm=options)
        self._longest = made.longest
        canary = Canary(model.vocabulary, made.longest, made.dtype)
        expected = model.expectations(canary.prompts)
        self._engine = VllmEngine(made)
        missing = self._engine.load(model.weights(), 0)
        apart = canary.difference(self._engine.probe(canary.prompts, canary.count), expected)
        if missing or not apart <= canary.tolerance:
            self._engine.close()
            said = f"it takes no weights for {', '.join(missing[:3])}" if missing else f"it is {apart:.2g} nats off"
            raise UsageError(
                f'a teacher with where = "vllm": vLLM does not compute this model as transformers does ({said}): say '
                'where = "worker"'
            )
        self._engine.cut_vocabulary(self._words)

    def score(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """The samples with what the teacher says of their tokens; log q of the token itself in ``teacher_logprobs``.

        From the first token on that the teacher has no word for, that is NaN. Raises UsageError for a sample that is
        longer than the engine's sequences.
        """
        rows = [one.token_ids[: self._known(one)] for one in samples]
        long = [len(row) for row in rows if len(row) >= self._longest]
        if long:
            raise UsageError(
                f"a row of {max(long)} tokens, and a teacher behind vLLM scores at most {self._longest - 1}: set "
                "max_tokens so that prompt and answer fit"
            )
        found = []
        for start in range(0, len(rows), ROWS):
            part = [row for row in rows[start : start + ROWS] if len(row)]
            said = iter(self._engine.prompt_logprobs(part, self._count))
            for sample, row in zip(samples[start : start + ROWS], rows[start : start + ROWS], strict=True):
                ids_TK, logprobs_TK = next(said) if len(row) else _nothing(self._count)
                found.append(_scored(sample, ids_TK, logprobs_TK, whole=self._count == self._words))
        return found

    def _known(self, sample: TrainingSample) -> int:
        """Tokens before the first that the teacher has no word for."""
        strange = np.flatnonzero(sample.token_ids >= self._words)
        return int(strange[0]) if len(strange) else len(sample.token_ids)

    def greedy(self, prompt_ids: Sequence[int], count: int) -> list[int]:
        """The ``count`` tokens that it finds most probable behind a prompt, one after the other."""
        ids = list(prompt_ids)
        for _ in range(count):
            (answer,) = self._engine.probe([tuple(ids)], 1)
            ids.append(answer.token_ids[0])
        return ids[len(prompt_ids) :]

    def close(self) -> None:
        """Give the engine back."""
        self._engine.close()


def _nothing(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((0, 1 + count), np.int32), np.zeros((0, 1 + count), np.float32)


def _scored(sample: TrainingSample, ids_TK: np.ndarray, logprobs_TK: np.ndarray, *, whole: bool) -> TrainingSample:
    """``ids_TK`` and ``logprobs_TK``: the token itself, which is no part of the support unless ranked in it, and the
    most probable words. ``whole``: those are all words there are."""
    missing = len(sample.token_ids) - len(ids_TK)
    drawn_T = np.pad(logprobs_TK[:, 0], (0, missing), constant_values=np.nan)
    if ids_TK.shape[1] == 1:
        return replace(sample, teacher_logprobs=drawn_T)
    top_TK = logprobs_TK[:, 1:]
    rest_T = np.maximum(1.0 - np.exp(top_TK.astype(np.float64)).sum(axis=1), TAIL_FLOOR)
    tail_T = np.full(len(rest_T), -np.inf) if whole else np.log(rest_T)
    around = ((0, missing), (0, 0))
    said = TeacherScores(
        ids=np.pad(ids_TK[:, 1:], around),
        logprobs=np.pad(top_TK, around, constant_values=np.nan),
        log_tail=np.pad(tail_T, (0, missing), constant_values=np.nan),
    )
    return replace(sample, teacher=said, teacher_logprobs=drawn_T)


class VllmTeacherActor:
    """A ``VllmTeacher`` as a Ray actor (``trainer.teachers.RemoteTeacher``)."""

    def __init__(self, rank: int, count: int, spec: VllmTeacherSpec) -> None:
        check_gpus()
        self._teacher = VllmTeacher(spec)

    def head(self) -> None:
        """It sends no states, which would need one."""

    def score(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """See ``VllmTeacher.score``."""
        return self._teacher.score(samples)

    def greedy(self, prompt_ids: Sequence[int], count: int) -> list[int]:
        """See ``VllmTeacher.greedy``."""
        return self._teacher.greedy(prompt_ids, count)
