"""The embedded engine against the trainer: same log-probs, right distribution, draws that no batch can change."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from policies import copy_of, sample, tokens
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlreason.config import PolicyConfig
from rlreason.data.prompts import PromptFormat
from rlreason.delivery.packing import DeliveryError
from rlreason.policy.batch import collate, rollout_sample
from rlreason.policy.policies import Policy, fresh_policy
from rlreason.sampler.draw import uniforms
from rlreason.sampler.groups import requests_of
from rlreason.sampler.jobs import Job, Progress
from rlreason.sampler.open import engine_spec, inline_sampler
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.transformers_engine import TransformersEngine, choose, sampling_logprobs
from rlreason.tasks.procedural import make_task
from rlreason.trainer.forward import loss_logprobs
from rlreason.types import Problem, SamplingParams

TASK = make_task("arithmetic", {"min_terms": 2, "max_terms": 6}, seed=0)
PROBLEMS = [TASK.problem("train", index) for index in range(12)]
TOLERANCE = 2e-5
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
}
MOE = {**SHAPE, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}


def make_policy(kind: str, seed: int = 0) -> Policy:
    config = PolicyConfig(model_type=kind, model={**(MOE if kind == "qwen3_moe" else SHAPE), "initializer_range": 0.3})
    return fresh_policy(config, TASK.alphabet, (), seed, torch.device("cpu"))


def make_sampler(policy: Policy, max_rows: int = 512) -> PoolSampler:
    return inline_sampler(copy_of(policy), PromptFormat(), max_rows=max_rows)


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_trainer_agree_on_every_token(kind: str, temperature: float) -> None:
    policy = make_policy(kind)
    params = SamplingParams(samples_per_problem=4, max_tokens=24, temperature=temperature, seed=3, stream="s")
    groups = sample(make_sampler(policy), PROBLEMS, params)
    rows = [rollout_sample(c) for g in groups for c in g.completions_G]
    assert len({len(row.token_ids) for row in rows}) > 3  # ragged prompts and completions
    batch = collate(rows, policy.tokenizer.pad_token_id, torch.device("cpu"))
    ours = loss_logprobs(policy.model, batch, temperature)
    wrong = loss_logprobs(policy.model, batch, temperature * 1.01)
    mask = batch.loss_mask_BT.bool()
    difference = (ours - batch.sampler_logprobs_BT)[mask].abs().max()
    assert float(difference) < TOLERANCE
    # Canary: one per cent of temperature is far outside the tolerance.
    assert float((wrong - batch.sampler_logprobs_BT)[mask].abs().max()) > 10 * TOLERANCE


def test_draws_depend_on_problem_and_sample_alone() -> None:
    policy = make_policy("qwen3")
    params = SamplingParams(samples_per_problem=3, max_tokens=16, seed=1, stream="grpo/0")
    together = sample(make_sampler(policy), PROBLEMS, params)
    apart = [sample(make_sampler(policy, max_rows=3), [problem], params)[0] for problem in reversed(PROBLEMS)]
    for whole, single in zip(together, reversed(apart), strict=True):
        assert tokens([whole]) == tokens([single])
    other = sample(make_sampler(policy), PROBLEMS, SamplingParams(samples_per_problem=3, max_tokens=16, seed=2))
    assert tokens(together) != tokens(other)


def jobs_of(policy: Policy, params: SamplingParams) -> list[Job]:
    """One of each problem."""
    prompts = [PromptFormat().render(problem, policy.tokenizer).ids for problem in PROBLEMS]
    return [
        Job(key=str(at), group_id=str(at), problem_id=str(at), sample=0, prompt_ids=np.array(ids), params=params)
        for at, ids in enumerate(prompts)
    ]


class _Largest(TorchDispatchMode):
    """Bytes of the largest tensor of any operation, each entry of an expanded one counted: products copy those."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in tree_leaves(found):
            if isinstance(one, Tensor):
                self.size = max(self.size, one.nbytes)
        return found


def test_a_prefill_copies_no_head() -> None:
    """Many prompts at once: torch's linear of a slice that is not contiguous made a copy of the head for each of them,
    7 GB for 128 prompts of a vocabulary of 49,152."""
    policy = make_policy("qwen3")
    engine = TransformersEngine(engine_spec("transformers", policy, max_rows=64, max_length=64))
    engine.load(policy.weights(), 1)
    seen: list[Tensor] = []
    engine._model.get_output_embeddings().register_forward_pre_hook(lambda _, states: seen.append(states[0]))
    engine.submit(jobs := jobs_of(policy, SamplingParams(temperature=0.0, max_tokens=2)))
    assert len(engine.advance(1.0).drawn) == len(jobs)
    assert len(seen) == 2
    for states in seen:
        assert states.shape[:2] == (len(jobs), 1)
        assert states.is_contiguous()
    head = policy.model.get_output_embeddings().weight.detach()
    with torch.no_grad(), _Largest() as largest:  # canary
        torch.nn.functional.linear(torch.zeros(len(jobs), 3, head.shape[1])[:, -1:], head)
    assert largest.size == len(jobs) * head.nbytes


def test_threads_change_no_completion() -> None:
    policy = make_policy("qwen3_moe")
    params = SamplingParams(samples_per_problem=4, max_tokens=16, seed=1, stream="s")
    engines = [inline_sampler(policy, PromptFormat(), max_rows=8, threads=threads) for threads in (1, 3)]
    assert sample(engines[0], PROBLEMS, params) == sample(engines[1], PROBLEMS, params)


def test_every_thread_has_rows_where_one_batch_could_hold_all() -> None:
    policy = make_policy("qwen3")
    drawn = []
    for threads in (1, 3):
        spec = engine_spec("transformers", policy, max_rows=64, max_length=64, threads=threads)
        engine = TransformersEngine(spec)
        engine.load(policy.weights(), 1)
        passes: list[int] = []  # of prompts: one a batch
        engine._model.register_forward_pre_hook(
            lambda _, __, given, passes=passes: passes.append(given["input_ids"].shape[1]), with_kwargs=True
        )
        engine.submit(jobs_of(policy, SamplingParams(max_tokens=6, seed=2)))
        drawn.append([one.completion.token_ids.tolist() for one in engine.advance(1.0).drawn])
        assert sum(width > 1 for width in passes) == threads
    assert drawn[0] == drawn[1]


def drawn(logits: Tensor, uniform: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    return choose(sampling_logprobs(logits, params), uniform, params)


def test_samples_follow_the_distribution() -> None:
    # 20,000 draws of a three-token distribution: each share within 4 standard errors.
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).repeat(20_000, 1)
    uniform = torch.from_numpy(uniforms(0, "test", "p", 0, 20_000))
    chosen, logprobs = drawn(logits, uniform, SamplingParams())
    counts = Counter(chosen.tolist())
    for token, share in enumerate((0.2, 0.5, 0.3)):
        assert abs(counts[token] / 20_000 - share) < 4 * np.sqrt(share * (1 - share) / 20_000)
    assert torch.allclose(logprobs.exp(), torch.tensor([0.2, 0.5, 0.3])[chosen], atol=1e-6)


def test_top_k_and_top_p_cut_and_renormalise() -> None:
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]])).repeat(1000, 1)
    uniform = torch.from_numpy(uniforms(0, "test", "p", 0, 1000))
    chosen, logprobs = drawn(logits, uniform, SamplingParams(top_k=2))
    assert set(chosen.tolist()) == {0, 1}
    assert float(logprobs[chosen == 0][0].exp()) == pytest.approx(4 / 7, abs=1e-6)
    # 0.4 + 0.3 reach 0.65: the nucleus is the first two
    assert set(drawn(logits, uniform, SamplingParams(top_p=0.65))[0].tolist()) == {0, 1}
    assert set(drawn(logits, uniform, SamplingParams(min_p=0.45))[0].tolist()) == {0, 1, 2}  # 0.45 · 0.4 = 0.18


def test_greedy_takes_the_most_likely() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    chosen, logprob = drawn(logits, torch.zeros(1), SamplingParams(temperature=0.0))
    assert chosen.tolist() == [1]
    assert float(logprob) == pytest.approx(float(torch.log_softmax(logits, -1)[0, 1]))


def test_publish_is_a_delivery_of_its_own() -> None:
    policy, other = make_policy("qwen3"), make_policy("qwen3", seed=1)
    sampler = make_sampler(policy)
    params = SamplingParams(samples_per_problem=2, max_tokens=8)
    before = sample(sampler, PROBLEMS[:2], params)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(1.0)
    assert sample(sampler, PROBLEMS[:2], params) == before  # the trainer's weights are not the sampler's
    sampler.publish(other.weights(), version=5)
    after = sample(sampler, PROBLEMS[:2], params)
    assert sampler.version == 5
    assert {c.policy_version_max for g in after for c in g.completions_G} == {5}
    assert tokens(after) != tokens(before)


def test_publish_refuses_other_weights() -> None:
    policy = make_policy("qwen3")
    weights = policy.model.state_dict()
    kept = {name: tensor for name, tensor in weights.items() if "layers.1.mlp.up_proj" not in name}
    sampler = make_sampler(policy)
    sampler.publish(kept.items(), version=1)
    with pytest.raises(DeliveryError, match=r"version 1 .*layers\.1\.mlp\.up_proj\.weight, and the engine kept"):
        sample(sampler, PROBLEMS[:1], SamplingParams(max_tokens=2))
    sampler = make_sampler(policy)
    sampler.publish({**weights, "lm_heed.weight": torch.zeros(2)}.items(), version=1)
    with pytest.raises(DeliveryError, match=r"the model has no lm_heed\.weight"):
        sample(sampler, PROBLEMS[:1], SamplingParams(max_tokens=2))


def test_stop_and_length() -> None:
    policy = make_policy("qwen3")
    end = policy.tokenizer.eos_token_id
    groups = sample(make_sampler(policy), PROBLEMS, SamplingParams(samples_per_problem=8, max_tokens=12, seed=5))
    completions = [c for g in groups for c in g.completions_G]
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for completion in completions:
        assert len(completion.sampler_logprobs) == len(completion.token_ids) <= 12
        stopped = completion.finish_reason == "stop"
        assert stopped == (completion.token_ids[-1] == end)
        assert end not in completion.token_ids[:-1]
        assert policy.tokenizer.eos_token not in completion.text


def test_an_empty_list_of_problems() -> None:
    assert sample(make_sampler(make_policy("qwen3")), [], SamplingParams()) == []


def test_messages_and_unicode_reach_the_prompt() -> None:
    policy = make_policy("qwen3")
    problem = Problem(id="x", prompt="3+5=é", verifier="math", reference="8")
    group = sample(make_sampler(policy), [problem], SamplingParams(max_tokens=2))[0]
    assert group.completions_G[0].prompt_ids[-1] == policy.tokenizer.unk_token_id


class Interrupt(BaseException):
    """As a signal's handler raises it."""


def test_a_signal_ends_the_drawing_at_the_next_token(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("qwen3")
    sampler = inline_sampler(policy, PromptFormat(), max_rows=8, threads=2)
    steps, decode = [], TransformersEngine._decode

    def counted(self: TransformersEngine, *arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        return decode(self, *arguments)

    def handler(*_: object) -> None:
        raise Interrupt

    monkeypatch.setattr(TransformersEngine, "_decode", counted)
    before = signal.signal(signal.SIGUSR1, handler)
    params = SamplingParams(samples_per_problem=8, max_tokens=200, temperature=1.0, seed=1)
    never_ends = replace(sampler.pool._spec, stop_ids=())
    sampler.pool._workers[0].handle.worker._make_engine = lambda _: TransformersEngine(never_ends, policy.frozen_copy())
    try:
        with pytest.raises(Interrupt):
            sample(sampler, PROBLEMS, params)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(steps) < 100  # of 12 batches of 199 steps
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]
    sampler.close()


def test_another_thread_may_interrupt() -> None:
    policy = make_policy("qwen3")
    engine = TransformersEngine(replace(engine_spec("transformers", policy, max_rows=8, max_length=None), stop_ids=()))
    params = SamplingParams(max_tokens=30_000)
    engine.submit([Job(key="a", group_id="a", problem_id="a", sample=0, prompt_ids=np.array([1, 2]), params=params)])
    found: list[Progress] = []
    thread = threading.Thread(target=lambda: found.append(engine.advance(1.0)))
    thread.start()
    while thread.is_alive():
        engine.interrupt()
        thread.join(0.1)
    assert found[0].drawn == ()
    assert engine.advance(1.0).steps == 0  # it was forgotten


def test_part_of_a_group_is_drawn_as_in_the_whole() -> None:
    """What is left of a group whose worker died."""
    policy = make_policy("qwen3")
    params = SamplingParams(samples_per_problem=4, max_tokens=16, seed=1, stream="s")
    whole = sample(make_sampler(policy), PROBLEMS[:3], params)
    sampler = make_sampler(policy)
    requests = [group[place] for place, group in zip((0, 2, 3), requests_of(PROBLEMS[:3], params), strict=True)]
    requests.append(requests_of(PROBLEMS[:3], params)[0][3])
    sampler.ask(requests)
    drawn = {request.key: completion for request, completion in sampler.poll(1.0)}
    for request in requests:
        group = next(group for group in whole if group.group_id == request.group_id)
        assert drawn[request.key].token_ids.tolist() == group.completions_G[request.sample].token_ids.tolist()


def test_not_a_number_stays_in_the_completion() -> None:
    policy = make_policy("qwen3")
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[3] = torch.nan
    completion = sample(make_sampler(policy), PROBLEMS[:1], SamplingParams(max_tokens=4))[0].completions_G[0]
    assert np.isnan(completion.sampler_logprobs).all()


def test_inline_engines_share_the_models_memory() -> None:
    policy = make_policy("qwen3")
    sampler = inline_sampler(policy, PromptFormat())
    sample(sampler, PROBLEMS[:1], SamplingParams(max_tokens=2))
    engine = sampler.pool._workers[0].handle.worker._engine
    ours, theirs = engine._model.state_dict(), policy.model.state_dict()
    assert {name: tensor.data_ptr() for name, tensor in ours.items()} == {
        name: tensor.data_ptr() for name, tensor in theirs.items()
    }
    assert sampler.stats.read()["workers/replaced"] == 0.0
    assert "delivery/seconds" not in sampler.stats.read()


class OneDevice(TorchFunctionMode):
    """Has every table that is made without a device count as one on the host, and fails where an operation mixes it
    with the model's: what CUDA would say "indices should be either on cpu or on the same device" of."""

    MAKERS = (torch.zeros, torch.ones, torch.full, torch.arange, torch.tensor, torch.from_numpy, torch.empty)

    def __init__(self) -> None:
        super().__init__()
        self._host: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in tree_leaves((args, kwargs or {})) if isinstance(one, Tensor) and one.ndim]
        on_host = [one for one in given if id(one) in self._host]
        moves = func in (Tensor.to, Tensor.cpu)
        is_property = type(func).__name__ == "method-wrapper"
        if on_host and not moves and not is_property:
            assert len(on_host) == len(given), f"{func} mixes a table on the host with the model's device"
        found = func(*args, **(kwargs or {}))
        made = func in self.MAKERS and (kwargs or {}).get("device") is None
        if isinstance(found, Tensor) and (made or func is Tensor.cpu or (on_host and not moves)):
            self._host[id(found)] = found  # kept, so that no other gets its id
        elif isinstance(found, Tensor) and moves and id(found) in self._host:
            return found.view_as(found)  # on a CPU ``to`` gives the tensor itself
        return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_table_is_on_the_models_device(temperature: float) -> None:
    """A greedy draw indexed a table on the host by rows on the GPU. No GPU is needed to see it."""
    policy = make_policy("qwen3")
    engine = TransformersEngine(engine_spec("transformers", policy, max_rows=64, max_length=None), policy.model)
    params = SamplingParams(samples_per_problem=3, temperature=temperature, max_tokens=9, seed=0, stream="s")
    ids = [np.array([5, 6, 7]), np.array([8, 9])]
    jobs = [
        Job(
            key=f"{at}/{sample}", group_id=str(at), problem_id=str(at), sample=sample, prompt_ids=ids[at], params=params
        )
        for at in range(2)
        for sample in range(3)
    ]
    with OneDevice():  # in this thread, which ``advance`` leaves
        drawn = engine._sample_batch(engine._batches(jobs)[0], threading.Event())
        engine.probe([(5, 6, 7)], 3)
    assert drawn.keys() == {job.key for job in jobs}


def test_a_table_on_the_host_is_found() -> None:
    with OneDevice(), pytest.raises(AssertionError, match="mixes"):
        torch.zeros((1, 1)).expand(3, 4)[torch.arange(3, device="cpu"), 0]
