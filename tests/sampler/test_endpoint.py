"""Drawing from OpenAI-compatible servers: vLLM's own says what our engine says; the others' troubles are named."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policies import PROBLEMS, make_policy, sample, tokens
from servers import chat_answer, fake_server, vllm_server

from rlreason.config import EndpointConfig, Recipe
from rlreason.data.prompts import PromptFormat
from rlreason.errors import UsageError
from rlreason.policy.policies import Policy
from rlreason.sampler.endpoint import TRIES, EndpointSampler
from rlreason.sampler.groups import requests_of
from rlreason.sampler.open import inline_sampler
from rlreason.sampler.placement import Samplers
from rlreason.types import Message, SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, stream="greedy")
FORMAT = PromptFormat()


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy("qwen3")


@pytest.fixture(scope="module")
def server(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    with vllm_server(policy, tmp_path_factory.mktemp("server")) as found:
        yield found


def opened(url: str, policy: Policy | None = None, name: str = "judge", **options: Any) -> EndpointSampler:
    prompt_format = options.pop("prompt_format", FORMAT)
    config = EndpointConfig(url=url, model="tiny", **options)
    return EndpointSampler(name, config, prompt_format, policy.tokenizer if policy else None, backoff=0.001)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_vllms_server_says_what_our_engine_says(server: tuple[str, Path], policy: Policy, api: str) -> None:
    url, _ = server
    sampler = opened(url, policy, api=api, logprobs=True)
    assert not sampler.gives_logprobs
    expected = sample(inline_sampler(policy, FORMAT), PROBLEMS, GREEDY)
    found = sample(sampler, PROBLEMS, GREEDY)
    assert tokens(found) == tokens(expected)
    assert sampler.gives_logprobs
    for ours, theirs in zip(found, expected, strict=True):
        one, other = ours.completions_G[0], theirs.completions_G[0]
        assert (one.text, one.prefill, one.finish_reason) == (other.text, other.prefill, other.finish_reason)
        assert one.prompt_ids.tolist() == other.prompt_ids.tolist()
        assert np.abs(one.sampler_logprobs - other.sampler_logprobs).max() < 5e-5
    assert {one.completions_G[0].finish_reason for one in found} == {"stop", "length"}
    sampler.close()


def test_samples_have_seeds_of_their_own(server: tuple[str, Path], policy: Policy) -> None:
    url, _ = server
    sampler = opened(url, policy, concurrency=3)
    params = SamplingParams(samples_per_problem=3, max_tokens=16, seed=5, stream="s", top_k=20, top_p=0.9)
    first = sample(sampler, PROBLEMS[:6], params)
    assert len(set(tokens(first[:1]))) > 1
    assert tokens(sample(sampler, PROBLEMS[:6], params)) == tokens(first)
    assert tokens(sample(sampler, PROBLEMS[:6], replace(params, seed=6))) != tokens(first)
    assert {c.sampler_logprobs for group in first for c in group.completions_G} == {None}
    assert not sampler.gives_logprobs
    sampler.close()


def test_the_recipe_opens_it(server: tuple[str, Path], policy: Policy) -> None:
    url, folder = server
    table = {"url": url, "model": "tiny", "tokenizer": str(folder)}
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "policy": {"model_type": "qwen3"},
            "data": {"train": "arithmetic"},
            "endpoint": {"big": table, "lost": {**table, "tokenizer": "/nowhere/to/be/found"}},
            "stage": [{"kind": "eval", "name": "e", "models": ["big"], "max_tokens": 9}],
        }
    )
    samplers = Samplers(recipe, FORMAT, 1)
    sampler = samplers.endpoint("big")
    expected = sample(inline_sampler(policy, FORMAT), PROBLEMS[:3], GREEDY)
    assert tokens(sample(sampler, PROBLEMS[:3], GREEDY)) == tokens(expected)
    sampler.close()
    with pytest.raises(UsageError, match=r"endpoint\.lost\.tokenizer = '/nowhere/to/be/found': can't be loaded: "):
        samplers.endpoint("lost")


def test_what_the_server_refuses_is_named(server: tuple[str, Path], policy: Policy) -> None:
    url, _ = server
    sampler = opened(url, policy)
    with pytest.raises(UsageError, match=r"endpoint\.judge: http://.*/v1/completions answered 400: .*max_tokens"):
        sample(sampler, PROBLEMS[:2], replace(GREEDY, max_tokens=100_000))
    sampler.close()
    sampler = opened(url.replace("/v1", ""), policy)
    with pytest.raises(UsageError, match=r"answered 404: .*Not Found"):
        sample(sampler, PROBLEMS[:1], GREEDY)
    sampler.close()


def test_chat_with_a_plain_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    def reply(path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, dict[str, str], object]:
        seen.append((path, headers, body))
        if body["messages"][-1]["content"] == "reasons":
            return 200, {}, chat_answer("4", reasoning_content="2+2")
        if body["messages"][-1]["content"] == "long":
            return 200, {}, chat_answer("so", "length")
        return 200, {}, chat_answer("\\boxed{4}")

    problems = [replace(PROBLEMS[0], id=word, prompt=word) for word in ("2+2", "reasons", "long")]
    turns = (Message(role="system", content="own"), Message(role="user", content="x"))
    history = replace(PROBLEMS[0], id="h", messages=turns)
    with fake_server(reply) as url:
        sampler = opened(url, api="chat", api_key_env="JUDGE_KEY", prompt_format=PromptFormat(system="Think."))
        groups = sample(sampler, [*problems, history], SamplingParams(max_tokens=9, temperature=0.5, seed=1))
        sampler.close()
    plain, reasons, long, _ = [group.completions_G[0] for group in groups]
    assert (plain.response, plain.finish_reason) == ("\\boxed{4}", "stop")
    assert reasons.response == "<think>2+2</think>4"
    assert long.finish_reason == "length"
    assert plain.token_ids.tolist() == [0] * 5
    assert plain.prompt_ids.tolist() == [0] * 7
    assert plain.sampler_logprobs is None
    path, headers, body = next(one for one in seen if one[2]["messages"][-1]["content"] == "2+2")
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer sk-secret")
    assert body["messages"] == [{"role": "system", "content": "Think."}, {"role": "user", "content": "2+2"}]
    assert set(body) == {"model", "messages", "max_tokens", "temperature", "top_p", "seed"}  # what OpenAI knows
    assert [one[2]["messages"] for one in seen if one[2]["messages"][0]["content"] == "own"]
    assert len({one[2]["seed"] for one in seen}) == 4


def test_a_tokenizer_counts_what_comes_as_text(policy: Policy) -> None:
    with fake_server(lambda *_: (200, {}, chat_answer("3+5"))) as url:
        sampler = opened(url, policy, api="chat", logprobs=True)
        completion = sample(sampler, PROBLEMS[:1], GREEDY)[0].completions_G[0]
        sampler.close()
    words = policy.tokenizer.encode("3+5", add_special_tokens=False)
    assert completion.token_ids.tolist() == [*words, policy.tokenizer.eos_token_id]
    assert completion.sampler_logprobs is None
    assert not sampler.gives_logprobs


@pytest.mark.parametrize("trouble", [0, 429, 500, 503])
def test_passing_trouble_is_tried_again(trouble: int) -> None:
    lock, failures = threading.Lock(), [TRIES - 1] * 3

    def reply(path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, dict[str, str], object]:
        place = int(body["messages"][0]["content"])
        with lock:
            failures[place] -= 1
            if failures[place] >= 0:
                return trouble, {"Retry-After": "0.01"}, "busy"
        return 200, {}, chat_answer(str(place))

    problems = [replace(PROBLEMS[0], id=str(place), prompt=str(place)) for place in range(3)]
    with fake_server(reply) as url:
        sampler = opened(url, api="chat", concurrency=2)
        assert [g.completions_G[0].text for g in sample(sampler, problems, GREEDY)] == ["0", "1", "2"]
        sampler.close()


def test_lasting_trouble_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")

    def fails(answer: tuple[int, dict[str, str], object]) -> str:
        with fake_server(lambda *_: answer) as url:
            sampler = opened(url, api="chat", api_key_env="JUDGE_KEY")
            with pytest.raises(UsageError) as found:
                sample(sampler, PROBLEMS[:3], GREEDY)
            sampler.close()
        assert "sk-secret" not in str(found.value)
        assert str(found.value).startswith(f"endpoint.judge: {url}/chat/completions ")
        return str(found.value).partition("completions ")[2]

    assert fails((500, {}, "first line\nsecond line")) == "answered 500: first line"
    assert fails((401, {}, {"error": {"message": "wrong key sk-secret"}})) == "answered 401: wrong key ***"
    assert fails((400, {}, {"error": "bad"})) == "answered 400: bad"
    assert fails((200, {}, "<html>\n</html>")) == "is no OpenAI-compatible server: it answered <html>"
    assert fails((200, {}, {"choices": []})).startswith("is no OpenAI-compatible server")
    assert fails((0, {}, "")).startswith("no answer (")


def test_what_is_wrong_before_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r'judge\.api = "completions" renders prompts here: give endpoint\.judge\.tok'):
        opened("http://127.0.0.1:9/v1")
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(UsageError, match=r"endpoint\.judge\.api_key_env = 'NO_KEY': no such environment variable"):
        opened("http://127.0.0.1:9/v1", api="chat", api_key_env="NO_KEY")
    sampler = opened("http://127.0.0.1:9/v1", api="chat")
    with pytest.raises(UsageError, match="takes no weights"):
        sampler.publish(iter(()), 1)
    assert sampler.poll(0.0) == []
    sampler.close()
    sampler.close()


def test_it_can_be_closed_while_requests_are_under_way() -> None:
    asked, go = threading.Event(), threading.Event()

    def reply(*_: object) -> tuple[int, dict[str, str], object]:
        asked.set()
        go.wait(60)
        return 200, {}, chat_answer("late")

    with fake_server(reply) as url:
        sampler = opened(url, api="chat", concurrency=2)
        sampler.ask([request for requests in requests_of(PROBLEMS, GREEDY) for request in requests])
        assert asked.wait(60)
        assert sampler.poll(0.01) == []
        sampler.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "endpoint judge"]
        go.set()
