"""The recipe's tables for how it trains and draws, and where: ``[trainer] [endpoint.NAME] [sampler] [cluster]``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from rlreason.config.vllm import checked


class Section(BaseModel):
    """A recipe table: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraConfig(Section):
    """Train an adapter (LoRA, arXiv 2106.09685) beside frozen weights; learning rates are about ten times larger."""

    #: Rows of A and columns of B.
    rank: int = Field(16, ge=1)
    #: alpha / rank multiplies B A.
    alpha: float = Field(32.0, gt=0)
    #: Names of linear layers, such as ["q_proj", "v_proj"]; empty: all but the head and routers.
    targets: tuple[str, ...] = ()
    #: The routed experts too.
    experts: bool = False


class TrainerConfig(Section):
    """How training is kept safe, and what of it is kept."""

    #: Steps between two saved states, from which a run goes on; 0: only at SIGTERM, at Ctrl-C and at a stage's end.
    save_every: int = Field(50, ge=0)
    #: What checkpoints hold. auto: what the model computes in (``policy.dtype``).
    checkpoint_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    #: Checkpoints of single steps that are kept beside a stage's last one, newest first; made when a state is saved.
    keep_checkpoints: int = Field(0, ge=0)
    #: A metric such as "accuracy/heldout": each stage keeps the step where it was highest, which STAGE@best names.
    best_metric: str | None = Field(None, min_length=1)
    #: Steps in a row whose gradient is not finite, all of them skipped, that end the run.
    max_skipped_steps: int = Field(5, ge=1)
    #: Coefficient of the load-balancing loss of experts in sft and distill stages (arXiv 2101.03961). auto: the model's
    #: own router_aux_loss_coef; of a model built from nothing only where [policy.model] sets it. RL stages have none.
    router_aux_loss: Literal["auto", "off"] | Annotated[float, Field(ge=0)] = "auto"
    #: After each optimizer step the bias by which a router picks experts (DeepSeek-V3, GLM-4-MoE: a buffer without a
    #: gradient) moves by this much up for those with less than the mean load of loss tokens, and down for those with
    #: more, in all stages that train (arXiv 2412.19437, 2408.15664). 0: it stays. DeepSeek-V3: 0.001, and 0 at the end.
    router_bias_update: float = Field(0.0, ge=0, allow_inf_nan=False)
    #: What routers of experts compute in where the model computes in bfloat16. model: what the model's own code says,
    #: mostly bfloat16. float32: weights, logits and softmax in float32 (Megatron and verl: moe_router_dtype), those of
    #: the transformers engine too; vLLM's stay its own.
    router_dtype: Literal["model", "float32"] = "model"
    #: Processes that share the model in shards (FSDP2), as Ray actors with a GPU each; 0: one model in this process.
    ranks: int = Field(0, ge=0)
    #: Ranks that compute each layer together, each with a part of its heads and matrices, on the same samples.
    tensor_parallel: int = Field(1, ge=1)
    #: Ranks that share the routed experts of a layer, each with whole ones, and send each other tokens; a multiple of
    #: tensor_parallel.
    expert_parallel: int = Field(1, ge=1)
    #: Compute each layer again in the backward pass instead of keeping what it computed.
    activation_checkpointing: bool = False
    #: Attention over packed tokens. auto: flex on a GPU that has Triton, else sdpa. flex: torch's flex_attention, by
    #: blocks and without a mask; GPUs only. sdpa: padded tables, which need a mask where a prompt is shared.
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    #: The adapter to train; without, all weights are trained.
    lora: LoraConfig | None = None
    #: Shards, gradients and moments stay in the CPU's memory between uses; with ranks only.
    offload: bool = False


class EndpointConfig(Section):
    """A model behind an OpenAI-compatible server, such as ``vllm serve``. It is drawn from and never trained."""

    #: Up to the version, such as "http://localhost:8000/v1".
    url: str = Field(pattern=r"^https?://[^\s/]+\S*$")
    #: The name that the server gives the model.
    model: str = Field(min_length=1)
    #: completions: our chat template and prefill, exactly as in training. chat: the server's own template.
    api: Literal["completions", "chat"] = "completions"
    #: Folder or hub id of its tokenizer.
    tokenizer: str | None = None
    #: Environment variable that holds the key; the key itself is written nowhere.
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    #: Requests under way at once.
    concurrency: int = Field(16, ge=1)
    #: Seconds for one answer.
    timeout: float = Field(300.0, gt=0)
    #: Ask for the log-probability of every token.
    logprobs: bool = False


class SamplerConfig(Section):
    """The engine that draws completions, and how it gets the weights."""

    #: auto: vLLM on GPUs, where it and Ray are installed; otherwise transformers, which draws faster on CPUs for models
    #: that CPUs train (docs/rollouts.md).
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    #: Completions decoded together by one worker; changes memory and speed only.
    max_rows: int = Field(512, ge=1)
    #: Longest prompt and completion together; default: the model's own limit.
    max_length: int | None = Field(None, ge=2)
    #: vLLM's memory for keys and values, in GiB; default: what is free on a GPU, 0.25 on a CPU.
    kv_cache_gib: float | None = Field(None, gt=0)
    #: Share of a GPU's memory that vLLM takes.
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    #: GPUs that one vLLM engine is spread over.
    tensor_parallel: int = Field(1, ge=1)
    #: vLLM without CUDA graphs: slower, with less memory.
    enforce_eager: bool = False
    #: Every request to vLLM brings its seed. false: workers draw as it comes, which batches of many sequences on GPUs
    #: may do faster; two runs, and a run that is resumed, then draw other tokens, and no run can be replayed.
    request_seeds: bool = True
    #: Settings of vLLM's EngineArgs, passed on as written, such as ``kv_cache_dtype = "fp8"``; those that rlreason sets
    #: are refused (docs/rollouts.md).
    vllm: dict[str, JsonValue] = Field(default_factory=dict)
    #: What is sent to the workers. full: all weights, an adapter merged. delta: the elements that changed. adapter: of
    #: trainer.lora the adapter alone, which workers add to the frozen weights that they keep. auto: adapter over Ray
    #: with trainer.lora, otherwise full.
    delivery: Literal["auto", "full", "delta", "adapter"] = "auto"
    #: How: host puts buckets into Ray's object store. collective broadcasts them to Ray workers; with trainer.ranks the
    #: first rank does (docs/rollouts.md).
    transport: Literal["host", "collective"] = "host"
    #: Prove every delivery: checksums, and log-probabilities of probe prompts against the trainer's.
    canary: bool = True
    #: Largest difference of a probe's log-probability that passes; default 5e-5 in float32, a mean of 0.15 in bfloat16.
    canary_tolerance: float | None = Field(None, gt=0)

    @field_validator("vllm")
    @classmethod
    def _passed_on(cls, settings: dict[str, JsonValue]) -> dict[str, JsonValue]:
        checked(settings)
        return settings


class ClusterConfig(Section):
    """Where the work runs."""

    #: inline: in this process. ray: rollout workers are Ray actors. auto: ray for vLLM, otherwise inline.
    kind: Literal["auto", "inline", "ray"] = "auto"
    #: CPU threads that train and sample, each on a micro-batch of its own; 0 takes every core. Never changes a result.
    threads: int = Field(0, ge=0)
    #: Processes that run rewards.
    reward_workers: int = Field(1, ge=1)
    #: Seconds one reward may run, queueing not counted; of a program, all its cases together.
    reward_timeout: float = Field(60.0, gt=0)
    #: Calls of an asynchronous reward, such as an LLM judge, that are under way at a time.
    reward_concurrency: int = Field(32, ge=1)
    #: A running Ray cluster, such as "auto" or "ray://head:10001"; default: the one on this host, else one is started.
    #: "local" always starts one.
    address: str | None = None
    #: Ray actors that draw; 0: one per GPU besides the trainer's, or one per core.
    rollout_workers: int = Field(0, ge=0)
    #: CPUs of one rollout worker.
    cpus_per_worker: float = Field(1.0, gt=0)
    #: GPUs of one rollout worker; a fraction shares a GPU. Default: sampler.tensor_parallel where GPUs are, else 0.
    gpus_per_worker: float | None = Field(None, ge=0)
    #: Dollars of one GPU for an hour, or without any of the machine: the cost ledger's price. Default: none is told.
    dollars_per_hour: float | None = Field(None, ge=0)
    #: Put workers on different hosts where there are several.
    spread: bool = False
    #: Engine and trainer take turns on the trainer's GPUs, and vLLM gives its memory back while the policy learns.
    #: auto: where the trainer leaves no GPU for an engine and staleness is 0.
    colocate: Literal["auto"] | bool = "auto"
    #: Seconds to wait for places in Ray that are not free or whose hosts are still to come. Default: 600 where other
    #: runs hold them or an autoscaler can add hosts, else none: what is too much is refused at once.
    wait_for_places: float | None = Field(None, ge=0)
    #: Seconds without an answer after which a rollout worker counts as hung and is replaced; at work it answers.
    worker_timeout: float = Field(120.0, gt=0)
