"""What routers in float32 change: their error against float64, and how well trainer and sampler agree when none of the
two, the trainer alone, or both have them.

    python bench/router_dtype/compare.py

Tiny Qwen3-MoE models in bfloat16 on a CPU, after 20 steps of cross-entropy on random text, three seeds. The sampler is
the transformers engine with delivered weights. Prints Markdown; docs/models.md has the tables of 30 November 2026.

N = tokens, E = experts, K = experts per token, H = hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from rlreason.config import OptimizerConfig, PolicyConfig
from rlreason.delivery.packing import Packer, Receiver
from rlreason.policy.batch import rollout_sample, supervised_sample
from rlreason.policy.policies import fresh_policy
from rlreason.routing import routers_in
from rlreason.sampler.jobs import Job
from rlreason.sampler.open import engine_spec
from rlreason.sampler.transformers_engine import TransformersEngine
from rlreason.trainer.forward import CrossEntropyLoss
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions
from rlreason.types import Completion, SamplingParams

CPU, CHOSEN, SEEDS = torch.device("cpu"), 4, (0, 1, 2)
MODEL = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 128, "moe_intermediate_size": 32, "num_experts": 16, "num_experts_per_tok": CHOSEN,
    "norm_topk_prob": True, "initializer_range": 0.15,
}  # fmt: skip
#: (trainer, sampler) with routers in float32.
SIDES = {"neither": (False, False), "trainer": (True, False), "both": (True, True)}


@dataclass(frozen=True, slots=True)
class RouterError:
    """Against float64 routers of the masters and the same hidden states: logits and gate weights on average, and the
    share of (token, layer) that go to other experts."""

    logits: float
    gates: float
    rerouted: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """log π_trainer − log π_sampler of drawn tokens, in nats; the share of (token, layer) with the same experts."""

    mean: float
    largest: float
    k3: float
    same: float


def trainer_of(seed: int, *, wide: bool, sends: bool) -> LocalTrainer:
    """The same masters for each seed."""
    policy = fresh_policy(PolicyConfig(model_type="qwen3_moe", model=MODEL), "0123456789", (), seed, CPU)
    options = TrainerOptions(
        optimizer=OptimizerConfig(lr=1e-3), total_steps=20, compute_dtype=torch.bfloat16, routing="bench",
        float32_routers=wide, sends_float32_routers=sends,
    )  # fmt: skip
    return LocalTrainer(policy, options)


def texts(seed: int) -> Iterator[list[int]]:
    """Numbers that follow each other."""
    random = np.random.default_rng(seed)
    while True:
        yield [7 + (int(random.integers(10)) + at * int(random.integers(1, 3))) % 10 for at in range(48)]


def trained(seed: int) -> dict[str, Tensor]:
    """Masters after 20 steps without the key, by name."""
    one, source = trainer_of(seed, wide=False, sends=False), texts(seed)
    for step in range(20):
        samples = [supervised_sample(next(source), [0] + [1] * 47) for _ in range(8)]
        one.forward_backward(samples, CrossEntropyLoss(denominator=8.0 * 47))
        one.step(step)
    return dict(zip(one._masters.names, (p.detach().clone() for p in one._masters.parameters), strict=True))


@torch.no_grad()
def give(one: LocalTrainer, masters: dict[str, Tensor]) -> LocalTrainer:
    """``one`` with those masters."""
    for name, master in zip(one._masters.names, one._masters.parameters, strict=True):
        master.copy_(masters[name])
    one._masters.round_into_model()
    return one


@torch.no_grad()
def router_errors(one: LocalTrainer, masters: dict[str, Tensor], seed: int) -> list[RouterError]:
    """Of each layer."""
    seen: dict[str, tuple[Tensor, tuple[Tensor, ...]]] = {}
    handed: dict[str, Tensor] = {}
    hooks = []
    for name, router in routers_in(one.model):
        hooks.append(
            router.register_forward_pre_hook(
                lambda _, inputs, name=name: handed.update({name: inputs[0]}), prepend=True
            )
        )
        hooks.append(
            router.register_forward_hook(lambda _, __, out, name=name: seen.update({name: (handed[name], out)}))
        )
    source = texts(seed + 100)
    one.model.eval()(torch.tensor([next(source) for _ in range(16)]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return [_error(states, outputs, masters[f"{name}.weight"]) for name, (states, outputs) in seen.items()]


def _error(states: Tensor, outputs: tuple[Tensor, ...], weight_EH: Tensor) -> RouterError:
    logits_NE, gates_NK, experts_NK = outputs
    exact_NE = states.reshape(-1, states.shape[-1]).double() @ weight_EH.double().t()
    chosen_NK = exact_NE.topk(CHOSEN).indices
    same_N = (chosen_NK.sort().values == experts_NK.sort().values).all(dim=1)
    exact_gates_NK = exact_NE.softmax(dim=1).gather(1, experts_NK)
    exact_gates_NK /= exact_gates_NK.sum(dim=1, keepdim=True)
    return RouterError(
        logits=float((logits_NE.double() - exact_NE).abs().mean()),
        gates=float(((gates_NK.double() - exact_gates_NK).abs() / exact_gates_NK).mean()),
        rerouted=float((~same_N).double().mean()),
    )


def drawn(one: LocalTrainer) -> list[Completion]:
    """64 completions of 48 tokens from the embedded engine, with ``one``'s weights as they are delivered."""
    engine = TransformersEngine(engine_spec("transformers", one, max_rows=64, max_length=64, experts=True))
    packed = Packer().pack(one.weights(), 1)
    engine.load(Receiver().stream(packed.manifest, packed.buckets, keep=False), 1)
    params = SamplingParams(samples_per_problem=64, max_tokens=48, seed=5, stream="bench")
    prompt = np.array([7, 9, 11, 13], dtype=np.int32)
    engine.submit(
        [
            Job(key=f"{at}", group_id="g", problem_id="p", sample=at, prompt_ids=prompt, params=params)
            for at in range(64)
        ]
    )
    return [found.completion for found in engine.advance(600.0).drawn]


def agreement(one: LocalTrainer) -> Agreement:
    """Of ``one`` and an engine that holds its weights."""
    completions = drawn(one)
    samples = [rollout_sample(completion, 1.0, 1.0, "g") for completion in completions]
    away, same = [], []
    for sample, found in zip(samples, one.routed_logprobs(samples), strict=True):
        mask = sample.loss_mask.astype(bool)
        away.append((found.logprobs - sample.sampler_logprobs)[mask].astype(np.float64))
        assert sample.routed_experts is not None
        said, own = sample.routed_experts[mask], found.experts[mask]
        known = (said != 255).any(axis=(1, 2))
        same.append((np.sort(said[known], axis=2) == np.sort(own[known], axis=2)).all(axis=2).ravel())
    away_N, same_N = np.concatenate(away), np.concatenate(same)
    k3 = np.exp(away_N) - 1 - away_N
    return Agreement(float(np.abs(away_N).mean()), float(np.abs(away_N).max()), float(k3.mean()), float(same_N.mean()))


def main() -> None:
    """Both tables."""
    masters = {seed: trained(seed) for seed in SEEDS}
    print("| routers | logits | gate weights, relative | other experts |\n|---|---|---|---|")
    for words, wide in (("model", False), ("float32", True)):
        found = [
            error
            for seed in SEEDS
            for error in router_errors(
                give(trainer_of(seed, wide=wide, sends=wide), masters[seed]), masters[seed], seed
            )
        ]
        means = [fmean(getattr(one, key) for one in found) for key in ("logits", "gates", "rerouted")]
        print(f"| {words} | {means[0]:.1e} | {means[1]:.1e} | {means[2]:.2%} |", flush=True)
    print("\n| float32 routers | mean | largest | k3 | same experts |\n|---|---|---|---|---|")
    for words, (wide, sends) in SIDES.items():
        each = [agreement(give(trainer_of(seed, wide=wide, sends=sends), masters[seed])) for seed in SEEDS]
        columns = [", ".join(f"{getattr(one, key):.2g}" for one in each) for key in ("mean", "largest", "k3")]
        print(f"| {words} | {' | '.join(columns)} | {', '.join(f'{one.same:.2%}' for one in each)} |", flush=True)


if __name__ == "__main__":
    main()
