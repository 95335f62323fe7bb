"""Advantages and token loss of a step: ours against verl's, TRL's and Liger's own functions, on identical inputs.

In the peers' environment (tests/objective/make_parity.py says which; add ``pip install -e . --no-deps``):

    peers/bin/python bench/objective/compare.py

Each pair must first agree; then the ways take turns. Counts operations and host-device syncs by torch's
dispatcher, and errors against float64. Writes bench/objective/results/compare.json and the marked block of
docs/performance.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "bench"), str(ROOT / "tests" / "objective")]
from documents import replace_block  # noqa: E402
from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction  # noqa: E402
from peer_trl import trainer  # noqa: E402
from trl import GRPOTrainer  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402
from verl.workers.config import ActorConfig  # noqa: E402

from rlreason.objective.advantage import dense_groups, group_advantage  # noqa: E402
from rlreason.objective.batch import Batch  # noqa: E402
from rlreason.objective.loss import policy_loss  # noqa: E402
from rlreason.objective.spec import ObjectiveSpec  # noqa: E402
from rlreason.run.manifest import describe_hardware  # noqa: E402

RESULTS = Path(__file__).with_name("results") / "compare.json"
GROUP, WIDTH = 8, 128
SPEC = ObjectiveSpec(correction="none", clip_high=0.2, std_epsilon=1e-6)
_VIEWS = ("view", "expand", "t", "transpose", "slice", "select", "squeeze", "unsqueeze", "detach", "alias", "reshape",
          "_unsafe_view", "as_strided")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of N sequences: scores, group names, loss tokens, log-probabilities."""

    scores: list[float]
    names: list[str]
    mask_NT: Tensor
    now_NT: Tensor
    old_NT: Tensor
    reference_NT: Tensor
    advantages_N1: Tensor

    @staticmethod
    def of(sequences: int) -> Step:
        """Completions of 64 to 128 tokens, in groups of 8; some groups all right or all wrong."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        lengths = torch.randint(WIDTH // 2, WIDTH + 1, (sequences, 1), generator=generator)
        now_NT = -normal(sequences, WIDTH).abs()
        rates = torch.rand(sequences // GROUP, generator=generator).repeat_interleave(GROUP)
        scores = (torch.rand(sequences, generator=generator) < rates).float()
        return Step(
            scores=scores.tolist(),
            names=[f"grpo/12/problem-{i // GROUP}" for i in range(sequences)],
            mask_NT=(torch.arange(WIDTH) < lengths).float(),
            now_NT=now_NT,
            old_NT=now_NT + 0.1 * normal(sequences, WIDTH),
            reference_NT=now_NT + 0.2 * normal(sequences, WIDTH),
            advantages_N1=normal(sequences, 1),
        )


def our_advantages(step: Step) -> Tensor:
    """From scores and group names, as a training step has them."""
    credit = group_advantage(
        torch.tensor(step.scores, dtype=torch.float64),
        torch.tensor(dense_groups(step.names)),
        step.mask_NT.sum(dim=1).long(),
        SPEC,
        max_tokens=WIDTH,
    )
    return credit.advantages_N


def verl_advantages(step: Step, name: str) -> Tensor:
    """verl's estimator; its scores stand at the last token, its group names in an array of objects."""
    rewards_NT = torch.zeros_like(step.mask_NT)
    rewards_NT[torch.arange(len(step.scores)), step.mask_NT.sum(dim=1).long() - 1] = torch.tensor(step.scores)
    index = np.array(step.names, dtype=object)
    advantages, _ = core_algos.get_adv_estimator_fn(name)(
        token_level_rewards=rewards_NT, response_mask=step.mask_NT, index=index
    )
    return advantages[:, 0]


def our_loss(step: Step, kl: float, sampler_NT: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Token-mean PPO loss, 0.2 on either side, k3 against the reference where ``kl``.

    ``sampler_NT``: where the sampler's log-probabilities are others than the old policy's, whose difference is
    measured too. The peers' functions take none.
    """
    batch = Batch(
        token_ids_BT=step.mask_NT.long(),
        targets_BT=step.mask_NT.long(),
        loss_mask_BT=step.mask_NT,
        sampler_logprobs_BT=step.old_NT if sampler_NT is None else sampler_NT,
        advantages_BT=step.advantages_N1 * step.mask_NT,
        weights_BT=step.mask_NT / float(step.mask_NT.sum()),
    )
    spec = ObjectiveSpec(correction="none", clip_high=0.2, kl_coef=kl, kl_estimator="k3")
    return lambda now: policy_loss(now, step.old_NT, batch, spec, step.reference_NT if kl else None).loss


def trl_loss(step: Step, kl: float) -> Callable[[Tensor], Tensor]:
    """GRPOTrainer._compute_loss with given log-probabilities."""
    stand_in = trainer({}, [], beta=kl)
    inputs = {
        "prompt_ids": torch.zeros((len(step.scores), 1), dtype=torch.long),
        "prompt_mask": torch.ones((len(step.scores), 1), dtype=torch.long),
        "completion_ids": step.mask_NT.long(),
        "completion_mask": step.mask_NT,
        "advantages": step.advantages_N1.squeeze(1),
        "num_items_in_batch": step.mask_NT.sum(),
        "old_per_token_logps": step.old_NT,
        "ref_per_token_logps": step.reference_NT,
    }
    entropies = torch.zeros_like(step.now_NT)

    def loss(now: Tensor) -> Tensor:
        stand_in._get_per_token_logps_and_entropies = lambda *_, **__: (now, entropies, None)
        return GRPOTrainer._compute_loss(stand_in, None, inputs)

    return loss


def verl_loss(step: Step, kl: float) -> Callable[[Tensor], Tensor]:
    """The vanilla loss without its dual clip, and its low-variance KL."""
    config = ActorConfig(strategy="fsdp", rollout_n=8, ppo_micro_batch_size_per_gpu=1, clip_ratio_low=0.2,
                         clip_ratio_high=0.2, clip_ratio_c=1e9)  # fmt: skip
    advantages_NT = step.advantages_N1.expand_as(step.mask_NT)

    def loss(now: Tensor) -> Tensor:
        value, _ = core_algos.get_policy_loss_fn("vanilla")(
            step.old_NT, now, advantages_NT, step.mask_NT, "token-mean", config
        )
        if kl:
            penalty_NT = core_algos.kl_penalty(now, step.reference_NT, "low_var_kl")
            value = value + kl * core_algos.agg_loss(penalty_NT, step.mask_NT, "token-mean")
        return value

    return loss


def liger_loss(step: Step, kl: float) -> Callable[[Tensor], Tensor]:
    """The torch part of Liger's fused GRPO loss (its kernels need a GPU), not compiled."""

    def loss(now: Tensor) -> Tensor:
        value, _ = LigerFusedLinearGRPOFunction.ppo_loss_fn(
            per_token_logps=now,
            attention_mask=step.mask_NT,
            advantages=step.advantages_N1.squeeze(1),
            full_attention_mask=step.mask_NT,
            ref_per_token_logps=step.reference_NT if kl else None,
            old_per_token_logps=step.old_NT,
            epsilon_low=0.2,
            epsilon_high=0.2,
            beta=kl,
            loss_type="dapo",
            importance_sampling_level="token",
        )
        return value

    return loss


class Count(TorchDispatchMode):
    """Operations that do work, and host-device syncs (``item``)."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.questions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.questions += name in ("_local_scalar_dense", "nonzero")
        self.operations += name not in _VIEWS
        return func(*args, **(kwargs or {}))


def slope(loss: Callable[[Tensor], Tensor], now_NT: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, its gradient)."""
    leaf = now_NT.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def exact_slope(step: Step, kl: float) -> tuple[Tensor, Tensor]:
    """The same in float64, written out."""
    now, old, reference = (x.double() for x in (step.now_NT, step.old_NT, step.reference_NT))

    def loss(leaf: Tensor) -> Tensor:
        ratio, advantages = (leaf - old).exp(), step.advantages_N1.double()
        gain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        gain = gain - kl * ((reference - leaf).exp() - (reference - leaf) - 1.0)
        return -(gain * step.mask_NT).sum() / step.mask_NT.sum()

    return slope(loss, now)


def take_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of each way, by turns; the ratio to ours is of neighbours in time."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):  # the first warms up
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - started)
    found = {}
    for name, values in seconds.items():
        with Count() as count:
            ways[name]()
        ratios = [theirs / ours for ours, theirs in zip(seconds["rlreason"], values, strict=True)]
        found[name] = {
            "milliseconds": 1e3 * statistics.median(values),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "operations": count.operations,
            "questions": count.questions,
        }
    return found


def agree(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Exit where two ways differ."""
    apart = float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())
    if not apart <= tolerance:
        raise SystemExit(f"{what}: differs by {apart:.1e}, more than {tolerance:.0e}")


def advantages(sequences: int, rounds: int) -> dict[str, Any]:
    """The group advantage of N sequences."""
    step = Step.of(sequences)
    names = {"verl, default": "grpo", "verl, vectorised": "grpo_vectorized"}
    for name in names.values():
        agree(verl_advantages(step, name), our_advantages(step), 1e-5, f"advantages of {name}")
    ways: dict[str, Callable[[], object]] = {"rlreason": lambda: our_advantages(step)}
    for label, name in names.items():
        ways[label] = lambda name=name: verl_advantages(step, name)
    return {"what": "advantages", "sequences": sequences, "ways": take_turns(ways, rounds)}


def losses(sequences: int, kl: float, rounds: int) -> dict[str, Any]:
    """Token loss, backward included."""
    step = Step.of(sequences)
    makers = {"rlreason": our_loss, "TRL": trl_loss, "verl": verl_loss, "Liger (eager)": liger_loss}
    made = {name: make(step, kl) for name, make in makers.items()}
    made["rlreason, another sampler"] = our_loss(step, kl, step.reference_NT)
    value, gradient = exact_slope(step, kl)
    errors = {}
    for name, loss in made.items():
        found, grad = slope(loss, step.now_NT)
        agree(found.reshape(()), value, 2e-5, f"loss of {name}")
        agree(grad, gradient, 2e-5, f"gradient of {name}")
        errors[name] = float((found.double() - value).abs().max() / value.abs())
    ways: dict[str, Callable[[], object]] = {
        name: lambda loss=loss: slope(loss, step.now_NT) for name, loss in made.items()
    }
    result = take_turns(ways, rounds)
    for name, error in errors.items():
        result[name]["error"] = error
    return {"what": f"token loss{', KL' if kl else ''}", "sequences": sequences, "ways": result}


def table(cases: list[dict[str, Any]]) -> str:
    """The cases as Markdown."""
    lines = [
        "| of | N | way | ms | times ours | operations | host-device syncs | loss off float64 by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        for name, way in case["ways"].items():
            low, high = way["ratio_range"]
            ratio = "1" if name == "rlreason" else f"**{way['ratio']:.1f}** ({low:.1f}–{high:.1f})"
            error = f"{way['error']:.0e}" if "error" in way else ""
            lines.append(
                f"| {case['what']} | {case['sequences']:,} | {name} | {way['milliseconds']:.2f} | {ratio} "
                f"| {way['operations']:,} | {way['questions']} | {error} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [advantages(count, options.rounds) for count in (1024, 8192)]
    cases += [losses(count, kl, options.rounds) for count in (1024, 8192) for kl in (0.0, 0.04)]
    print(table(cases))
    names = ("torch", "trl", "verl", "liger-kernel")
    versions = {name: importlib.metadata.version(name) for name in names}
    document = {
        "hardware": describe_hardware([]).model_dump(),
        "threads": options.threads,
        "versions": versions,
        "cases": cases,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    replace_block(ROOT / "docs" / "performance.md", "objective", table(cases))


if __name__ == "__main__":
    main()
