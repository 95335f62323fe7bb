"""What a model must show to be drawn with, and the engines that can do it here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from torch import Tensor

from rlreason.data.prompts import PromptFormat
from rlreason.errors import UsageError
from rlreason.sampler.handles import InlineCluster
from rlreason.sampler.jobs import EngineKind, EngineSpec, VllmOptions
from rlreason.sampler.pool import RolloutPool
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.transformers_engine import TransformersEngine, build_from
from rlreason.sampler.worker import RolloutWorker

#: What vLLM's CPU attention is compiled for.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


class ServedModel(Protocol):
    """A model to draw with, whoever holds it: a policy in this process, a trainer on many ranks."""

    @property
    def architecture(self) -> Mapping[str, object]:
        """Its config as a dict, with ``architectures`` and ``model_type``; nothing of where it came from."""
        ...

    @property
    def dtype(self) -> str:
        """What it computes in: "float32" or "bfloat16". Engines compute in the same."""
        ...

    @property
    def router_dtype(self) -> str:
        """What the weights of its routers come in, ``dtype`` or "float32"; those of the transformers engine compute in
        the same."""
        ...

    @property
    def vocabulary(self) -> int:
        """Rows of its head."""
        ...

    @property
    def tokenizer(self) -> Any:
        """Its transformers tokenizer."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a sample, the end of turn first."""
        ...

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """Every tensor by transformers' names; tied ones come once, or under each of their names."""
        ...

    def expectations(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
        """log π of the token after each prompt at temperature 1, [V] float32 on the CPU."""
        ...


def installed(package: str) -> bool:
    """Whether ``package`` can be imported, without importing it."""
    return find_spec(package) is not None


def why_not_vllm(model: ServedModel, *, on_gpu: bool) -> str:
    """Why vLLM can't run this model here, or "". It looks at what is known without building an engine."""
    if not installed("vllm"):
        return "vLLM is not installed"
    if on_gpu:
        return ""
    config: dict[str, Any] = dict(model.architecture)
    if config.get("kv_lora_rank"):
        # bench/families: of the same folder its log-probabilities are 0.4 nats off, and weights can't be delivered
        return "vLLM 0.32 computes multi-head latent attention (DeepSeek) otherwise on a CPU, by up to 0.4 nats"
    heads = config.get("num_attention_heads")
    head_dim = config.get("head_dim") or (int(config["hidden_size"]) // int(heads) if heads else None)
    if head_dim not in CPU_HEAD_SIZES:
        return f"vLLM's CPU attention has no head size {head_dim} ({', '.join(map(str, CPU_HEAD_SIZES))})"
    if int(config["hidden_size"]) % 32:
        return f"vLLM's CPU kernels need a hidden size that is a multiple of 32, not {config['hidden_size']}"
    return ""


def engine_spec(
    kind: EngineKind,
    model: ServedModel,
    *,
    max_rows: int,
    max_length: int | None,
    threads: int = 1,
    vllm: VllmOptions | None = None,
    experts: bool = False,
) -> EngineSpec:
    """The engine that draws with a model of ``model``'s architecture.

    Raises UsageError where neither the model nor ``max_length`` says how long a sequence may be.
    """
    stop_ids = model.stop_ids
    if max_length is None and "max_position_embeddings" not in model.architecture:
        raise UsageError("the model says no longest sequence: set sampler.max_length")
    pad_id = model.tokenizer.pad_token_id
    return EngineSpec(
        kind=kind,
        model=model.architecture,
        dtype=model.dtype,
        stop_ids=stop_ids,
        pad_id=stop_ids[0] if pad_id is None else pad_id,  # never looked at
        max_rows=max_rows,
        max_length=max_length,
        threads=threads,
        vllm=vllm or VllmOptions(),
        experts=experts,
        float32_routers=kind == "transformers" and model.router_dtype != model.dtype,
    )


def inline_sampler(
    model: ServedModel, prompt_format: PromptFormat, *, max_rows: int = 512, threads: int = 1
) -> PoolSampler:
    """Draws with ``model``'s weights where they are, in this process, as version 0: nothing is packed or copied.

    Both then hold the same memory: don't train the model meanwhile, and don't ``publish`` others where it goes on.
    """
    spec = engine_spec("transformers", model, max_rows=max_rows, max_length=None, threads=threads)
    cluster = InlineCluster(
        lambda: RolloutWorker(lambda spec: TransformersEngine(spec, build_from(spec, model.weights())))
    )
    pool = RolloutPool(cluster, spec, 1, canary=None, holding=0)
    return PoolSampler(pool, model.tokenizer, prompt_format)
