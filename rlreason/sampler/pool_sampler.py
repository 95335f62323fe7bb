"""``rlreason.types.Sampler`` over a pool of rollout workers: problems in, texts out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlreason.data.prompts import PromptFormat
from rlreason.sampler.draw import name_of
from rlreason.sampler.jobs import Job
from rlreason.sampler.pool import RolloutPool
from rlreason.sampler.stats import PoolStats
from rlreason.types import Completion, Request

if TYPE_CHECKING:
    from rlreason.arrays import IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A request under way, and its prompt as it was rendered; the requests of a group share the array."""

    request: Request
    prompt_ids: IntArray
    prefill: str


class PoolSampler:
    """Renders problems, has the pool draw them and reads the tokens back.

    One thread may ``poll`` while another asks and publishes.
    """

    def __init__(self, pool: RolloutPool, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat) -> None:
        self.pool = pool
        self._tokenizer = tokenizer
        self._format = prompt_format
        #: By the request's key, until it is handed out.
        self._asked: dict[str, _Asked] = {}

    @property
    def version(self) -> int:
        """The newest version that was published."""
        return self.pool.newest or 0

    @property
    def gives_logprobs(self) -> bool:
        """Always: every engine says what it drew with."""
        return True

    @property
    def probes(self) -> tuple[tuple[int, ...], ...]:
        """Prompts after which ``publish`` must be told the trainer's answers; none where deliveries are not proved."""
        return self.pool.probes

    @property
    def unfinished(self) -> int:
        """Completions asked for and not handed out yet."""
        return self.pool.unfinished

    @property
    def stats(self) -> PoolStats:
        """Deliveries, replaced workers and the like since they were read last."""
        return self.pool.stats

    @property
    def position(self) -> int:
        """How many groups have been handed to the workers, who get them in turn.

        With the same position the same requests go to the same workers. ``RolloutStream`` and ``draw_groups`` set it
        before they ask, from what they ask for alone; who calls ``ask`` may set it to go on as another run did.
        """
        return self.pool.position

    @position.setter
    def position(self, position: int) -> None:
        self.pool.position = position

    def ask(self, requests: Sequence[Request]) -> None:
        """See ``rlreason.types.Sampler``. The requests of a group that are asked for together share their prompt."""
        prompts: dict[str, tuple[IntArray, str]] = {}
        jobs = []
        for request in requests:
            assert request.key not in self._asked, f"{request.key!r} is under way"
            if request.group_id not in prompts:
                prompt = self._format.render(request.problem, self._tokenizer)
                prompts[request.group_id] = np.asarray(prompt.ids, dtype=np.int32), prompt.prefill
            prompt_ids, prefill = prompts[request.group_id]
            self._asked[request.key] = _Asked(request=request, prompt_ids=prompt_ids, prefill=prefill)
            jobs.append(
                Job(
                    key=request.key,
                    group_id=request.group_id,
                    problem_id=name_of(request),
                    sample=request.sample,
                    prompt_ids=prompt_ids,
                    params=request.params,
                    min_version=request.min_version,
                )
            )
        self.pool.ask(jobs)

    def poll(self, seconds: float) -> list[tuple[Request, Completion]]:
        """See ``rlreason.types.Sampler``. This is what drives the workers. Raises what ``RolloutPool.turn`` raises."""
        deadline = time.monotonic() + seconds
        while True:
            drawn = self.pool.turn(max(0.0, deadline - time.monotonic()))
            if drawn or not self.pool.unfinished or time.monotonic() >= deadline:
                return [self._finish(one.key, one.completion) for one in drawn]

    def publish(self, weights: Iterable[tuple[str, Tensor]], version: int, expected: Sequence[Tensor] = ()) -> None:
        """See ``rlreason.types.Sampler``; ``expected`` are of ``probes``. Raises ValueError for another number."""
        self.pool.publish(weights, version, expected)

    def sleep(self) -> None:
        """Have the workers give their accelerators' memory back, until weights are published; nothing may be under
        way."""
        self.pool.sleep()

    def interrupt(self) -> None:
        """Have a ``poll`` in another thread return soon. What is under way is lost."""
        self.pool.interrupt()

    def close(self) -> None:
        """End the workers, and Ray where it was started for them."""
        self.pool.close()
        self._asked.clear()

    def _finish(self, key: str, drawn: Completion) -> tuple[Request, Completion]:
        asked = self._asked.pop(key)
        # The tokenizer wants Python's integers; the token that ended the turn is not text.
        ids = drawn.token_ids[:-1] if drawn.finish_reason == "stop" else drawn.token_ids
        text = self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        arrays = _copies(drawn) | {"prompt_ids": asked.prompt_ids}
        return asked.request, replace(drawn, text=text, prefill=asked.prefill, **arrays)


def _copies(drawn: Completion) -> dict[str, Any]:
    """Arrays of ``drawn`` that must not be written to: what came over Ray lies in its object store, and stays there for
    as long as anyone looks at it."""
    arrays = {one.name: getattr(drawn, one.name) for one in fields(drawn)}
    return {
        name: array.copy()
        for name, array in arrays.items()
        if isinstance(array, np.ndarray) and not array.flags.writeable
    }
