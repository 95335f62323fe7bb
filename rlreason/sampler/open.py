"""Opens samplers: which engine and cluster there are here, and the pool on top of them."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlreason.data.prompts import PromptFormat, stop_token_ids
from rlreason.sampler.handles import InlineCluster
from rlreason.sampler.jobs import EngineKind, EngineSpec, VllmOptions
from rlreason.sampler.pool import RolloutPool
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.transformers_engine import TransformersEngine
from rlreason.sampler.worker import RolloutWorker

#: Keys of a config that say where a model comes from, and nothing of its shape.
ORIGIN = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
#: What vLLM's CPU attention is compiled for.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def installed(package: str) -> bool:
    """Whether ``package`` can be imported, without importing it."""
    return find_spec(package) is not None


def why_not_vllm(model: PreTrainedModel) -> str:
    """Why vLLM can't run this model here, or "". It looks at what is known without building an engine."""
    if not installed("vllm"):
        return "vLLM is not installed"
    if torch.cuda.is_available():
        return ""
    config = model.config.to_dict()
    heads = config.get("num_attention_heads")
    head_dim = config.get("head_dim") or (int(config["hidden_size"]) // int(heads) if heads else None)
    if head_dim not in CPU_HEAD_SIZES:
        return f"vLLM's CPU attention has no head size {head_dim} ({', '.join(map(str, CPU_HEAD_SIZES))})"
    if int(config["hidden_size"]) % 32:
        return f"vLLM's CPU kernels need a hidden size that is a multiple of 32, not {config['hidden_size']}"
    return ""


def engine_spec(
    kind: EngineKind,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_rows: int,
    max_length: int | None,
    threads: int = 1,
    vllm: VllmOptions | None = None,
) -> EngineSpec:
    """The engine that draws with ``model``'s architecture."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in ORIGIN}
    config |= {"architectures": [type(model).__name__], "model_type": model.config.model_type}
    return EngineSpec(
        kind=kind,
        model=config,
        dtype=str(model.dtype).removeprefix("torch."),
        stop_ids=stop_token_ids(tokenizer),
        pad_id=tokenizer.pad_token_id,
        max_rows=max_rows,
        max_length=max_length,
        threads=threads,
        vllm=vllm or VllmOptions(),
    )


def inline_sampler(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: PromptFormat,
    *,
    max_rows: int = 512,
    threads: int = 1,
) -> PoolSampler:
    """Draws with ``model`` itself, in this process, as version 0: give it a copy where training goes on."""
    spec = engine_spec("transformers", model, tokenizer, max_rows=max_rows, max_length=None, threads=threads)
    cluster = InlineCluster(lambda: RolloutWorker(lambda spec: TransformersEngine(spec, model)))
    pool = RolloutPool(cluster, spec, 1, canary=None)
    sampler = PoolSampler(pool, tokenizer, prompt_format)
    sampler.publish(model.state_dict(), 0)
    return sampler
