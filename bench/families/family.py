"""One family through everything, tiny, float32, on a CPU: ``python bench/families/family.py NAME`` prints one line of
JSON, a cell for each column: {"ok": …, "value": largest difference or None, "error": "" or why not}.

A process of its own for each family, as vLLM sets threads and takes memory for the whole process.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shapes import FAMILIES
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlreason.cluster.actors import ActorOptions
from rlreason.config import OptimizerConfig, PolicyConfig
from rlreason.data.prompts import PromptFormat
from rlreason.objective.spec import ObjectiveSpec
from rlreason.policy.batch import rollout_sample
from rlreason.policy.lora import LoraOptions
from rlreason.policy.policies import Policy, PolicySource, fresh_policy, fresh_tokenizer
from rlreason.routing import FREE, expert_count, find_routers
from rlreason.sampler.canary import Canary
from rlreason.sampler.groups import draw_groups
from rlreason.sampler.handles import InlineCluster
from rlreason.sampler.jobs import EngineKind, VllmOptions
from rlreason.sampler.open import engine_spec, inline_sampler
from rlreason.sampler.pool import RolloutPool
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.vllm_engine import VllmEngine
from rlreason.sampler.worker import RolloutWorker
from rlreason.tasks.procedural import make_task
from rlreason.trainer.forward import PolicyGradientLoss
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import ModelSource, TrainerOptions
from rlreason.trainer.rank import RankSpec
from rlreason.trainer.ray_trainer import RayTrainer, start_ranks
from rlreason.types import SamplingParams, TrainingSample

CPU = torch.device("cpu")
TASK = make_task("arithmetic", {"min_terms": 2, "max_terms": 6}, seed=0)
PROBLEMS = [TASK.problem("train", index) for index in range(6)]
PARAMS = SamplingParams(samples_per_problem=4, temperature=1.0, max_tokens=16, stream="families")
#: Largest difference of log-probabilities between two float32 computations of one model, in nats.
TOLERANCE = 1e-4


@dataclass(slots=True)
class Family:
    """What the columns share."""

    config: PolicyConfig

    def policy(self) -> Policy:
        """Fresh, the same every time."""
        return fresh_policy(self.config, TASK.alphabet, (), 0, CPU)

    def trainer(self, **options: Any) -> LocalTrainer:
        """Of a fresh policy."""
        return LocalTrainer(self.policy(), settings(**options))

    def samples(self) -> list[TrainingSample]:
        """Drawn by the embedded engine, with an advantage of ±1."""
        sampler = inline_sampler(self.policy(), PromptFormat())
        return samples_of(sampler)


def settings(**options: Any) -> TrainerOptions:
    return TrainerOptions(optimizer=OptimizerConfig(lr=1e-2), total_steps=4, micro_batch_tokens=512, **options)


def samples_of(sampler: PoolSampler) -> list[TrainingSample]:
    drawn = [one for group in draw_groups(sampler, PROBLEMS, PARAMS) for one in group.completions_G]
    return [rollout_sample(one, 1.0 - 2.0 * (at % 2), 1.0 / len(drawn), str(at // 4)) for at, one in enumerate(drawn)]


def learn(trainer: Any, samples: list[TrainingSample], *, replay: bool = False) -> dict[str, float]:
    """One GRPO step. Raises where the loss is not finite or no weight moved."""
    sums = trainer.forward_backward(samples, PolicyGradientLoss(spec=ObjectiveSpec(), replay=replay))
    stats = trainer.step(0)
    found = sums.read(float(sum(int(one.loss_mask.sum()) for one in samples)))
    if not np.isfinite(found["loss"]) or stats.skipped or not stats.moved:
        raise ValueError(f"loss {found['loss']}, moved {stats.moved}")
    return {**found, "grad_norm": stats.grad_norm}


def train(family: Family) -> float:
    """The embedded engine's log-probabilities against the trainer's, and one step."""
    return learn(family.trainer(), family.samples())["mismatch/max"]


def save(family: Family) -> float:
    """After a step, its folder read by transformers alone gives the trainer's logits."""
    trainer, samples = family.trainer(), family.samples()
    learn(trainer, samples)
    ids = torch.from_numpy(samples[0].token_ids.astype(np.int64)).unsqueeze(0)
    trainer.model.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        trainer.save(Path(folder))
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
        return float((loaded(input_ids=ids).logits - trainer.model(input_ids=ids).logits).abs().max())


def logprobs_apart(trainer: LocalTrainer, samples: list[TrainingSample]) -> float:
    own = trainer.logprobs(samples)
    return max(
        float(np.abs((one - sample.sampler_logprobs)[sample.loss_mask]).max())
        for one, sample in zip(own, samples, strict=True)
    )


def vllm_sampler(trainer: LocalTrainer, *, experts: bool = False) -> PoolSampler:
    """vLLM with the trainer's weights, the delivery proved by the canary."""
    kind: EngineKind = "vllm"
    options = VllmOptions(kv_cache_bytes=64 << 20)
    spec = engine_spec(kind, trainer, max_rows=32, max_length=None, vllm=options, experts=experts)
    canary = Canary(trainer.vocabulary, 256, trainer.dtype)
    pool = RolloutPool(InlineCluster(lambda: RolloutWorker(VllmEngine)), spec, 1, canary=canary)
    sampler = PoolSampler(pool, trainer.tokenizer, PromptFormat())
    sampler.publish(trainer.weights(), 0, trainer.expectations(sampler.probes))
    return sampler


def vllm_folder(family: Family) -> float:
    """vLLM loads the saved folder itself; its log-probabilities of given tokens against the trainer's."""
    from vllm import LLM
    from vllm import SamplingParams as VllmParams

    trainer, samples = family.trainer(), family.samples()
    learn(trainer, samples)
    with tempfile.TemporaryDirectory() as folder:
        trainer.save(Path(folder))
        engine = LLM(folder, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=256,
                     kv_cache_memory_bytes=64 << 20, disable_log_stats=True)  # fmt: skip
        params = VllmParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        prompts: list[Any] = [{"prompt_token_ids": sample.token_ids.tolist()} for sample in samples]
        outputs = engine.generate(prompts, params, use_tqdm=False)
    apart = 0.0
    for sample, output, own in zip(samples, outputs, trainer.logprobs(samples), strict=True):
        for at in np.flatnonzero(sample.loss_mask):
            found = output.prompt_logprobs[at][int(sample.token_ids[at])].logprob
            apart = max(apart, abs(float(own[at]) - float(found)))
    engine.llm_engine.engine_core.shutdown()
    return apart


def vllm_delivery(family: Family) -> float:
    """Drawn by vLLM with delivered weights, a step, delivered again, drawn again: the larger difference."""
    trainer = family.trainer()
    sampler = vllm_sampler(trainer)
    first = samples_of(sampler)
    apart = logprobs_apart(trainer, first)
    learn(trainer, first)
    sampler.publish(trainer.weights(), 1, trainer.expectations(sampler.probes))
    apart = max(apart, logprobs_apart(trainer, samples_of(sampler)))
    sampler.pool.close()
    return apart


def vllm_experts(family: Family) -> float | None:
    """Replay of what vLLM reported, of weights that are the same: the share of tokens and layers where the trainer's
    own routers would not have agreed. None for a dense model."""
    if not expert_count(family.policy().model):
        return None
    trainer = family.trainer(routing="replay")
    sampler = vllm_sampler(trainer, experts=True)
    samples = samples_of(sampler)
    sampler.pool.close()
    return _disagreed(trainer, samples)


def replay(family: Family) -> float | None:
    """The same of the embedded engine."""
    policy = family.policy()
    if not expert_count(policy.model):
        return None
    trainer = family.trainer(routing="replay")
    spec = engine_spec("transformers", policy, max_rows=64, max_length=None, experts=True)
    pool = RolloutPool(InlineCluster(RolloutWorker), spec, 1, canary=Canary(policy.vocabulary, 256, policy.dtype))
    sampler = PoolSampler(pool, policy.tokenizer, PromptFormat())
    sampler.publish(policy.weights(), 0, policy.expectations(sampler.probes))
    return _disagreed(trainer, samples_of(sampler))


def _disagreed(trainer: LocalTrainer, samples: list[TrainingSample]) -> float:
    assert all(one.routed_experts is not None and (one.routed_experts[1:] != FREE).any() for one in samples)
    sums = trainer.forward_backward(samples, PolicyGradientLoss(spec=ObjectiveSpec(), replay=True))
    assert sums.experts is not None
    assert find_routers(trainer.model) is not None
    shifted = [replace(one, routed_experts=np.roll(one.routed_experts, 1, axis=0)) for one in samples]  # type: ignore[arg-type]
    wrong = trainer.logprobs(shifted, replay=True)
    right = trainer.logprobs(samples, replay=True)
    if all(np.allclose(one, other, atol=1e-3) for one, other in zip(wrong, right, strict=True)):
        raise ValueError("the experts of other tokens changed nothing")
    return 1.0 - float(sums.experts.agreed_L.sum() / sums.experts.compared_L.sum())


def lora(family: Family) -> float:
    """An adapter learns, and the merged weights are what the model with it computes."""
    trainer, samples = family.trainer(lora=LoraOptions(rank=4, alpha=8.0)), family.samples()
    learn(trainer, samples)
    merged = dict(trainer.weights())
    plain = family.policy().model
    plain.load_state_dict(merged, strict=False)
    own: Tensor = trainer.expectations([(1, 2, 3)])[0]
    with torch.no_grad():
        found = torch.log_softmax(plain.eval()(input_ids=torch.tensor([[1, 2, 3]])).logits[0, -1].float(), dim=-1)
    return float((found - own).abs().max())


def two_ranks(family: Family) -> float:
    """One step on two ranks, and on one process: log-probabilities afterwards."""
    source = PolicySource(config=family.config, tokenizer=fresh_tokenizer(family.config, TASK.alphabet, ()), seed=0)
    samples, one = family.samples(), family.trainer()
    learn(one, samples)
    options = ActorOptions(name="trainer rank", setting="trainer.ranks", address="local")
    ranks = start_ranks(2, options)
    try:
        two = RayTrainer(RankSpec(model=ModelSource(source=source, dtype=torch.float32), options=settings()), ranks)
        learn(two, samples)
        pairs = zip(one.logprobs(samples), two.logprobs(samples), strict=True)
        return max(float(np.abs(a - b).max()) for a, b in pairs)
    finally:
        ranks.close()


COLUMNS: dict[str, Callable[[Family], float | None]] = {
    "train": train,
    "save": save,
    "lora": lora,
    "replay": replay,
    "two_ranks": two_ranks,
    "vllm_folder": vllm_folder,
    "vllm_delivery": vllm_delivery,
    "vllm_replay": vllm_experts,
}


def cell(column: Callable[[Family], float | None], family: Family) -> dict[str, Any]:
    """What a column found, or why it could not."""
    try:
        value = column(family)
    except Exception as error:
        said = " ".join(str(error).split())
        return {"ok": False, "value": None, "error": f"{type(error).__name__}: {said[:300]}"}
    return {"ok": value is None or value <= TOLERANCE, "value": value, "error": ""}


def main() -> None:
    """One column, or all."""
    torch.set_num_threads(1)
    kind, options = FAMILIES[sys.argv[1]]
    columns = sys.argv[2:] or list(COLUMNS)
    family = Family(config=PolicyConfig(model_type=kind, model=options))
    print(json.dumps({name: cell(COLUMNS[name], family) for name in columns}))


if __name__ == "__main__":
    main()
