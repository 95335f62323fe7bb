"""``[sampler.vllm]``: what is written reaches vLLM, what rlreason sets is refused; requests with and without seeds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import Asked
from policies import PROBLEMS, make_policy, open_pool, sample, tokens

from rlreason.config import load, locate
from rlreason.config.vllm import RESERVED, known_settings
from rlreason.errors import UsageError
from rlreason.plan.text import describe
from rlreason.policy.batch import collate, rollout_sample
from rlreason.sampler.handles import RayCluster, RayOptions
from rlreason.sampler.jobs import VllmOptions
from rlreason.trainer.forward import loss_logprobs
from rlreason.types import SamplingParams

ray: Any = pytest.importorskip("ray", reason="Ray is not installed")
QUICKSTART: Path = locate("quickstart")
PARAMS = SamplingParams(samples_per_problem=2, max_tokens=12, seed=3, stream="s")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sampler.vllm.seed=1", "sampler.vllm: seed can't be set here: every request brings a seed"),
        ("sampler.vllm.model='x'", "its weights are delivered"),
        ("sampler.vllm.max_num_seqs=8", "say sampler.max_rows"),
        ("sampler.vllm.tensor_parallel_size=2", "say sampler.tensor_parallel"),
        ("sampler.vllm.worker_extension_cls='a.B'", "takes the weights"),
        ("sampler.vllm.logprobs_mode='raw_logits'", "drawn from"),
    ],
)
def test_what_rlreason_sets_is_refused(override: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(QUICKSTART, [override])


def test_what_vllm_has_not_is_refused_where_it_is_installed() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    with pytest.raises(UsageError, match=r"sampler\.vllm: vLLM has no setting 'kv_cache_dtyp'; .*'kv_cache_dtype'"):
        load(QUICKSTART, ["sampler.vllm.kv_cache_dtyp='fp8'"])
    assert set(RESERVED) <= set(known_settings())


def test_the_source_says_what_vllm_takes() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    import dataclasses

    from vllm.engine.arg_utils import EngineArgs

    assert set(known_settings()) == {one.name for one in dataclasses.fields(EngineArgs) if one.name[0] != "_"}


def test_plan_shows_them() -> None:
    more = ["sampler.vllm.kv_cache_dtype='fp8'", "sampler.request_seeds=false"]
    said = describe(load(QUICKSTART, more), QUICKSTART)
    assert "  vLLM     kv_cache_dtype = 'fp8'; NO seed of its own for a request" in said
    assert "vLLM     " not in describe(load(QUICKSTART), QUICKSTART)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Its workers find asking.py."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        ray.init("local", num_cpus=2, object_store_memory=128 << 20, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def test_they_reach_the_engine_and_requests_may_go_without_seeds(local_ray: None) -> None:
    """The same requests draw other tokens then, and their log-probabilities are still the trainer's."""
    policy = make_policy("qwen3")
    given = {"max_num_batched_tokens": 1777, "enable_prefix_caching": False}
    vllm = VllmOptions(kv_cache_bytes=64 << 20, request_seeds=False, settings=given)
    sampler = open_pool(policy, RayCluster(RayOptions(workers=1), Asked), "vllm", 1, vllm=vllm)
    try:
        first = sample(sampler, PROBLEMS, PARAMS)
        assert sampler.pool._workers[0].handle.call("built_with").result() == (1777, False)
        again = sample(sampler, PROBLEMS, PARAMS)
        assert tokens(first) != tokens(again)
        rows = [rollout_sample(one) for group in again for one in group.completions_G]
        batch = collate(rows, policy.tokenizer.pad_token_id, torch.device("cpu"))
        off = (loss_logprobs(policy.model, batch, 1.0) - batch.sampler_logprobs_BT)[batch.loss_mask_BT.bool()]
        assert float(off.abs().max()) < 5e-5
    finally:
        sampler.close()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kv_cache_dtype": "int99"}, r"\[sampler\.vllm\] kv_cache_dtype: vLLM refuses: .*CacheConfig"),
        ({"enable_chunked_prefill": True}, "on a CPU draws would not be repeatable"),
    ],
)
def test_what_vllm_refuses_names_the_table(local_ray: None, given: dict[str, object], words: str) -> None:
    vllm = VllmOptions(kv_cache_bytes=64 << 20, settings=given)
    sampler = open_pool(make_policy("qwen3"), RayCluster(RayOptions(workers=1)), "vllm", 1, vllm=vllm)
    try:
        with pytest.raises(UsageError, match=words):
            sampler.pool.settle_deliveries()
    finally:
        sampler.close()
