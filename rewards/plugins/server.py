"""A reward server: ``http:http://localhost:8000/score``, in its own process or on another machine.

One POST for the completions of a problem, as JSON::

    {"items": [{"id", "prompt", "messages", "response", "reference", "source", "extra", "tokens"}, …],
     "query": [prompt + response, …], "prompts": [prompt, …], "labels": [reference, …]}

``query``, ``prompts`` and ``labels`` are what OpenRLHF sends to a remote reward model. The answer is a list with one
number or null an item, or ``{"rewards": […]}``, or ``{"scores": […]}``, with ``"extra_logs": {name: [number, …]}``
where there is more to log.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence

from rlreason.rewards.plugins.adapted import Adapted
from rlreason.rewards.plugins.openrlhf import prompt_text, results
from rlreason.types import Completion, Problem

#: Answers after which the server is asked again: it is busy or has just been started.
_AGAIN = frozenset({429, 500, 502, 503, 504})
_LONGEST_REPLY = 64 << 20


def adapt(url: str) -> Adapted:
    """The server behind ``url``: asynchronous, so many problems are under way at a time."""

    async def call(
        problem: Problem,
        completions: Sequence[Completion],
        *,
        timeout: float = 30.0,
        retries: int = 3,
        wait: float = 0.5,
        token: str = "",
    ) -> list[object]:
        """Scores of a reward server. ``timeout``: seconds for one request. ``retries``: how often a request that
        failed is sent again, after ``wait`` seconds and then twice as long each time. ``token``: sent as
        "Authorization: Bearer".
        """
        body = json.dumps(_asked(problem, completions), default=str).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        request = urllib.request.Request(url, data=body, headers=headers, method="POST")
        for attempt in range(max(0, int(retries)) + 1):
            try:
                reply = await asyncio.to_thread(_post, request, timeout)
            except _Busy as error:
                if attempt == retries:
                    raise ConnectionError(f"{error}, after {attempt + 1} requests") from None
                await asyncio.sleep(wait * 2**attempt)
            else:
                return results(reply, len(completions), "the reward server")
        raise AssertionError

    keys = frozenset({"timeout", "retries", "wait", "token"})
    # Requests that fail are sent again: the limits of one problem nest in that of the reward.
    return Adapted(
        function=call,
        per="group",
        concurrent=True,
        options=keys,
        seconds=130.0,
        deterministic=False,
        doc=call.__doc__ or "",
    )


class _Busy(Exception):
    """Worth another try."""


def _asked(problem: Problem, completions: Sequence[Completion]) -> dict[str, object]:
    prompt = prompt_text(problem)
    of_all = {
        "id": problem.id,
        "prompt": prompt,
        "messages": [{"role": turn.role, "content": turn.content} for turn in problem.messages],
        "reference": problem.reference,
        "source": problem.source,
        "extra": dict(problem.extra),
    }
    return {
        "items": [of_all | {"response": one.response, "tokens": len(one.token_ids)} for one in completions],
        "query": [prompt + one.response for one in completions],
        "prompts": [prompt] * len(completions),
        "labels": [problem.reference] * len(completions),
    }


def _post(request: urllib.request.Request, timeout: float) -> Mapping[str, object] | list[object]:
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            raw = response.read(_LONGEST_REPLY)
    except urllib.error.HTTPError as error:
        said = error.read(300).decode("utf-8", "replace")
        if error.code in _AGAIN:
            raise _Busy(f"the reward server says {error.code}: {said}") from None
        raise ValueError(f"the reward server refuses with {error.code}: {said}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Busy(f"no answer from the reward server: {error}") from None
    try:
        reply = json.loads(raw)
    except ValueError:
        raise ValueError(f"the reward server's answer is no JSON: {raw[:100]!r}") from None
    if not isinstance(reply, (dict, list)):
        raise ValueError(f"the reward server's answer is neither a list nor an object: {raw[:100]!r}")
    return reply
