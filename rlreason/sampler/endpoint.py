"""Draws from an OpenAI-compatible server (vLLM, SGLang, a vendor's), whose model and weights are its own.

With ``api = "completions"`` prompts are rendered here and travel as token ids, so the server sees exactly what training
sees; vLLM and SGLang take them. With ``api = "chat"`` messages travel, and the server's template makes the prompt.
Such a sampler serves ``reject`` and ``eval`` stages; nothing can be published to it, and nothing is trained on it.

Many requests are under way at a time, in an event loop in a thread of its own. Connection errors, 429 and 5xx are tried
again; what the server refuses is a UsageError with its words.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlreason.data.prompts import THINK_CLOSE, THINK_OPEN, PromptFormat, stop_token_ids
from rlreason.errors import UsageError
from rlreason.sampler.draw import name_of, request_seed
from rlreason.types import Completion, Request

if TYPE_CHECKING:
    from rlreason.arrays import IntArray
    from rlreason.config import EndpointConfig

#: Further tries of a request, each after twice the time of the one before: about a minute in all.
TRIES = 6
#: Seconds before the first of them.
BACKOFF = 1.0
LONGEST_WAIT = 30.0
#: Answers that say nothing of the request: too many at a time, or trouble of the server's.
PASSING = (408, 409, 425, 429)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """A request with what is sent for it, and what its completion is made of beside the answer."""

    request: Request
    body: Mapping[str, object]
    #: Empty where the server makes the prompt.
    prompt_ids: tuple[int, ...]
    prefill: str


class EndpointSampler:
    """``rlreason.types.Sampler`` over a server.

    A completion has the server's token ids where it gives them (vLLM does). Otherwise they are the local tokenizer's of
    the text; without a tokenizer they are zeros, as many as the server counted, and can only be counted.
    """

    def __init__(
        self,
        name: str,
        config: EndpointConfig,
        prompt_format: PromptFormat,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        backoff: float = BACKOFF,
    ) -> None:
        """``name``: of the recipe's table ``[endpoint.NAME]``, for messages. ``tokenizer``: that of ``config``.

        Raises UsageError where prompts can't be rendered, or the variable with the key is not set.
        """
        if config.api == "completions" and tokenizer is None:
            raise UsageError(
                f'endpoint.{name}.api = "completions" renders prompts here: give endpoint.{name}.tokenizer, the folder '
                'or hub id of the model\'s tokenizer, or say api = "chat"'
            )
        self._name, self._config = name, config
        self._format, self._tokenizer = prompt_format, tokenizer
        self._backoff = backoff
        self._key = _key(name, config)
        self._url = f"{config.url.rstrip('/')}/{'completions' if config.api == 'completions' else 'chat/completions'}"
        self._gives_logprobs = False
        self._under_way: set[str] = set()
        self._answers: queue.SimpleQueue[tuple[_Order, dict[str, Any]] | Exception] = queue.SimpleQueue()
        self._gate = asyncio.Semaphore(config.concurrency)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(config.timeout, pool=None),
            limits=httpx.Limits(max_connections=config.concurrency),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"endpoint {name}", daemon=True)
        self._thread.start()

    @property
    def version(self) -> int:
        """Always 0: the server's weights are not ours to count."""
        return 0

    @property
    def gives_logprobs(self) -> bool:
        """Whether they are asked for and the last answer had them."""
        return self._gives_logprobs

    def ask(self, requests: Sequence[Request]) -> None:
        """See ``rlreason.types.Sampler``. Raises UsageError where a prompt can't be rendered."""
        orders = [self._order(request) for request in requests]
        self._under_way.update(order.request.key for order in orders)
        for order in orders:
            asyncio.run_coroutine_threadsafe(self._draw(order), self._loop)

    def poll(self, seconds: float) -> list[tuple[Request, Completion]]:
        """See ``rlreason.types.Sampler``. Raises UsageError with what the server said, if it does not do its part."""
        found: list[tuple[Request, Completion]] = []
        while self._under_way:
            try:
                answer = self._answers.get(timeout=seconds) if seconds and not found else self._answers.get_nowait()
            except queue.Empty:
                break
            if isinstance(answer, Exception):
                self._under_way.clear()
                raise answer
            request = answer[0].request
            self._under_way.discard(request.key)
            found.append((request, self._completion(*answer)))
        return found

    def publish(self, weights: Iterable[tuple[str, Tensor]], version: int, expected: Sequence[Tensor] = ()) -> None:
        """Raises UsageError: the server keeps its model."""
        raise UsageError(f"endpoint {self._name!r} has a model of its own and takes no weights: it can't be trained")

    def close(self) -> None:
        """Give up what is under way, and the connections."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._under_way.clear()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def _order(self, request: Request) -> _Order:
        params, config = request.params, self._config
        body: dict[str, object] = {
            "model": config.model,
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "seed": request_seed(params.seed, params.stream, name_of(request)) + request.sample,
        }
        if params.top_k:
            body["top_k"] = params.top_k
        prompt = None if self._tokenizer is None else self._format.render(request.problem, self._tokenizer)
        prefill = "" if prompt is None else prompt.prefill
        if config.api == "chat":
            body["messages"] = _messages(request, self._format)
            template = self._format.of(request.problem).template
            body |= {"chat_template_kwargs": dict(template)} if template else {}
            body |= {"logprobs": True, "return_token_ids": True} if config.logprobs else {}
            return _Order(request=request, body=body, prompt_ids=(), prefill=prefill)
        assert prompt is not None
        assert self._tokenizer is not None
        # What OpenAI's own servers don't know: tokens in and out, and stops that need no text.
        body |= {
            "prompt": list(prompt.ids),
            "stop_token_ids": list(stop_token_ids(self._tokenizer)),
            "skip_special_tokens": False,
            "return_token_ids": True,
        }
        body |= {"logprobs": 0} if config.logprobs else {}
        return _Order(request=request, body=body, prompt_ids=prompt.ids, prefill=prefill)

    async def _draw(self, order: _Order) -> None:
        try:
            async with self._gate:
                answer = await self._post(order)
            self._answers.put((order, answer))
        except Exception as error:
            self._answers.put(error)

    async def _post(self, order: _Order) -> dict[str, Any]:
        """The server's answer, tried again where another try may help."""
        wait = self._backoff
        for left in range(TRIES, -1, -1):
            asked = 0.0
            try:
                answer = await self._client.post(self._url, json=order.body)
            except httpx.TransportError as error:
                what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                failure = f"no answer ({what}); is the server up?"
            else:
                if answer.status_code == httpx.codes.OK:
                    return self._json(answer)
                failure = f"answered {answer.status_code}: {_reason(answer)}"
                if answer.status_code < 500 and answer.status_code not in PASSING:
                    break
                asked = _retry_after(answer)
            if left:
                # Requests that failed together are not tried again together.
                spread = 1.0 + int(str(order.body["seed"])) % 1000 / 1000
                await asyncio.sleep(min(max(wait * spread, asked), LONGEST_WAIT))
                wait *= 2
        raise UsageError(self._hidden(f"endpoint.{self._name}: {self._url} {failure}"))

    def _json(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            found = answer.json()
            found["choices"][0]["finish_reason"]
        except (ValueError, LookupError, TypeError):
            what = f"is no OpenAI-compatible server: it answered {_first_line(answer.text)}"
            raise UsageError(self._hidden(f"endpoint.{self._name}: {self._url} {what}")) from None
        return dict(found)

    def _hidden(self, message: str) -> str:
        """``message`` without the key, which some servers repeat."""
        return message.replace(self._key, "***") if self._key else message

    def _completion(self, order: _Order, answer: Mapping[str, Any]) -> Completion:
        choice = answer["choices"][0]
        stopped = choice["finish_reason"] == "stop"
        text, prefill = _text(choice, order.prefill)
        counted = dict(answer.get("usage") or {})
        ids = choice.get("token_ids")
        logprobs = _logprobs(choice) if self._config.logprobs else None
        tokenizer = self._tokenizer
        if ids and tokenizer is not None:  # the server may have left special tokens out of its text
            text = tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=False)
            prefill = order.prefill
        elif not ids:
            logprobs = None  # nobody knows which tokens they are of
            ids = _zeros(counted, "completion_tokens")
            if tokenizer is not None:
                ends = stop_token_ids(tokenizer)[:1] if stopped else ()
                ids = [*tokenizer.encode(text, add_special_tokens=False), *ends]
        prompt_ids = order.prompt_ids or answer.get("prompt_token_ids") or _zeros(counted, "prompt_tokens")
        self._gives_logprobs = logprobs is not None
        return Completion(
            prompt_ids=np.asarray(prompt_ids, dtype=np.int32),
            token_ids=np.asarray(ids, dtype=np.int32),
            sampler_logprobs=None if logprobs is None else np.asarray(logprobs, dtype=np.float32),
            text=text,
            prefill=prefill,
            finish_reason="stop" if stopped else "length",
        )


def _key(name: str, config: EndpointConfig) -> str:
    if config.api_key_env is None:
        return ""
    key = os.environ.get(config.api_key_env, "")
    if not key:
        raise UsageError(
            f"endpoint.{name}.api_key_env = {config.api_key_env!r}: no such environment variable, or it is empty"
        )
    return key


def _messages(request: Request, prompt_format: PromptFormat) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in prompt_format.turns(request.problem)]


def _text(choice: Mapping[str, Any], prefill: str) -> tuple[str, str]:
    """(text, prefill) of the assistant's turn. A thought that the server took out of it is put back."""
    if "message" not in choice:
        return str(choice.get("text") or ""), prefill
    message = choice["message"]
    content = str(message.get("content") or "")
    thought = message.get("reasoning_content") or message.get("reasoning")
    return (f"{THINK_OPEN}{thought}{THINK_CLOSE}{content}", "") if thought else (content, prefill)


def _logprobs(choice: Mapping[str, Any]) -> list[float] | None:
    """Of each token, as both APIs give them; a token without one has nan. None: there are none."""
    given = choice.get("logprobs") or {}
    values = given.get("token_logprobs") or [one.get("logprob") for one in given.get("content") or ()]
    return [float("nan") if value is None else float(value) for value in values] or None


def _zeros(counted: Mapping[str, Any], what: str) -> IntArray:
    return np.zeros(int(counted.get(what) or 0), dtype=np.int32)


def _retry_after(answer: httpx.Response) -> float:
    """Seconds that the server asks for; 0 where it asks for none, or for a date."""
    try:
        return float(answer.headers.get("Retry-After", 0.0))
    except ValueError:
        return 0.0


def _reason(answer: httpx.Response) -> str:
    """The server's words: the message of an OpenAI-style error, else the first line of the body."""
    try:
        error = answer.json()["error"]
        return _first_line(str(error["message"] if isinstance(error, dict) else error))
    except (json.JSONDecodeError, LookupError, TypeError):
        return _first_line(answer.text)


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:300] if lines else "nothing"
