"""``[sampler.vllm]``: settings of vLLM itself, passed on as they are written, but for those that rlreason must set."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from pydantic import JsonValue

from rlreason.errors import nearest

_WEIGHTS = "the engine is built from the policy's config, and its weights are delivered"
_TOKENS = "engines are given token ids and give token ids"
_PLACES = "a worker is one engine on sampler.tensor_parallel GPUs, and cluster.rollout_workers says how many there are"
#: What ``vllm.EngineArgs`` takes and a recipe may not say here -> why, or which key says it.
RESERVED: Mapping[str, str] = {
    **dict.fromkeys(
        ("model", "model_weights", "load_format", "hf_config_path", "config_format", "hf_overrides", "revision"),
        _WEIGHTS,
    ),
    **dict.fromkeys(("hf_token", "download_dir", "served_model_name", "runner", "convert"), _WEIGHTS),
    **dict.fromkeys(("tokenizer", "skip_tokenizer_init", "tokenizer_mode", "tokenizer_revision"), _TOKENS),
    **dict.fromkeys(("pipeline_parallel_size", "data_parallel_size", "nnodes", "node_rank", "device_ids"), _PLACES),
    "tensor_parallel_size": "say sampler.tensor_parallel, which also gives the worker its GPUs",
    "gpu_memory_utilization": "say sampler.gpu_memory_utilization",
    "kv_cache_memory_bytes": "say sampler.kv_cache_gib",
    "enforce_eager": "say sampler.enforce_eager",
    "max_model_len": "say sampler.max_length",
    "max_num_seqs": "say sampler.max_rows",
    "dtype": "say policy.dtype: engine and trainer compute in the same",
    "seed": "every request brings a seed, made of the recipe's; sampler.request_seeds switches that off",
    "logprobs_mode": "log-probabilities must be those of the distribution that was drawn from",
    "max_logprobs": "rlreason asks for what it reads",
    "async_scheduling": "an engine step must be whole when weights change",
    "enable_sleep_mode": "cluster.colocate says it",
    "worker_extension_cls": "rlreason's own takes the weights",
    "weight_transfer_config": "sampler.transport says how weights travel",
    "enable_lora": "a worker adds the adapter to its weights by itself (sampler.delivery)",
    "enable_prompt_embeds": _TOKENS,
}


def checked(settings: Mapping[str, JsonValue]) -> None:
    """Raise ValueError for a key that rlreason sets, or that the installed vLLM has not."""
    known = known_settings()
    for name in settings:
        if name in RESERVED:
            raise ValueError(f"{name} can't be set here: {RESERVED[name]}")
        if known and name not in known:
            raise ValueError(
                f"vLLM has no setting {name!r}{nearest(name, [one for one in known if one not in RESERVED])}"
            )


@cache
def known_settings() -> tuple[str, ...]:
    """Fields of the installed ``vllm.EngineArgs``, read from its source, as importing vLLM takes seconds and sets
    threads; () where vLLM is not installed."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        return ()
    tree = ast.parse(Path(spec.origin).with_name("engine").joinpath("arg_utils.py").read_text(encoding="utf-8"))
    (arguments,) = (one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == "EngineArgs")
    fields = (one.target for one in arguments.body if isinstance(one, ast.AnnAssign))
    return tuple(target.id for target in fields if isinstance(target, ast.Name) and not target.id.startswith("_"))
