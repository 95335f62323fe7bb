"""The health rules: each looks at what a stage has recorded so far and says what is wrong, or None.

To add one: write a function ``(History, HealthConfig) -> str | None`` here, name it in ``WARNINGS``, give it its limit
in ``config/health.py`` (then ``python -m rlreason.config.keys > docs/recipe.md``) and a line in docs/health.md. It is
called after every step with all metrics, and speaks once in a stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from statistics import fmean, median

from rlreason.config.health import HealthConfig

#: Steps before the newest ones that a comparison over time needs.
FIRST, LAG, SPIKE_AFTER = 5, 20, 5


@dataclass(slots=True)
class History:
    """What a stage has recorded. Example: ``history.last("entropy", 10)`` are the newest ten, oldest first."""

    kind: str
    #: The policy is a mixture of experts.
    moe: bool = False
    #: So many steps at first train the routers alone.
    router_steps: int = 0
    #: Detail of the first completion that broke in the newest step with one.
    evidence: str = ""
    #: By metric: (step, value).
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take in one step."""
        for key, value in scalars.items():
            self.series.setdefault(key, []).append((step, value))

    def points(self, key: str) -> list[tuple[int, float]]:
        """Every (step, value) of a metric."""
        found: list[tuple[int, float]] = []
        return self.series.get(key, found)

    def last(self, key: str, count: int, skip: int = 0) -> list[float]:
        """The newest ``count`` values but for the ``skip`` newest, oldest first."""
        points = self.points(key)
        end = len(points) - skip
        return [value for _, value in points[max(0, end - count) : max(0, end)]]

    def mean(self, key: str, count: int) -> float:
        """Of the newest ``count`` values; NaN where there is none."""
        values = self.last(key, count)
        return fmean(values) if values else math.nan

    def total(self, key: str) -> float:
        """Sum over the whole stage."""
        return sum(value for _, value in self.points(key))


def no_verdict(history: History, limits: HealthConfig) -> str | None:
    """Completions that say nothing, as their check broke or ran past its limit."""
    training = "verdict", limits.window, "completions"
    for prefix, window, what in (training, ("heldout", 1, "held-out answers")):
        broken, late = history.mean(f"{prefix}/broken", window), history.mean(f"{prefix}/timed_out", window)
        if broken + late > limits.no_verdict:
            first = f"; the first that broke: {history.evidence}" if broken and history.evidence else ""
            return (
                f"{broken + late:.0%} of the {what} were not checked to the end ({broken:.0%} broken, {late:.0%} timed "
                f"out){first}"
            )
    return None


def groups_kept(history: History, limits: HealthConfig) -> str | None:
    """Steps that learn from few of the groups that were drawn."""
    totals, kept = history.last("groups/total", limits.window), history.last("groups/kept", limits.window)
    if not totals or sum(kept) >= limits.groups_kept * sum(totals):
        return None
    unscored = history.last("groups/no_verdict", limits.window)
    if sum(unscored) > 0.5 * (sum(totals) - sum(kept)):
        return f"{sum(kept) / sum(totals):.0%} of the groups are learnt from; most of the others have no score at all"
    return (
        f"{sum(kept) / sum(totals):.0%} of the groups are learnt from, the others have equal rewards: the problems are "
        "too easy or too hard for the policy (other data, more samples a problem, or resample)"
    )


def truncated(history: History, limits: HealthConfig) -> str | None:
    """Completions that are cut off before their end."""
    share = history.mean("truncated", limits.window)
    if not share > limits.truncated:
        return None
    return f"{share:.0%} of the completions are cut off at max_tokens: give them more, or shorten them (overlong)"


def entropy_collapse(history: History, limits: HealthConfig) -> str | None:
    """A policy that draws the same every time explores nothing."""
    points = history.points("entropy")
    if len(points) < 2 * FIRST:
        return None
    start, now = fmean(value for _, value in points[:FIRST]), history.mean("entropy", FIRST)
    if now >= limits.entropy or now >= limits.entropy_left * start:
        return None
    return (
        f"entropy collapsed from {start:.3g} to {now:.3g} nats a token: all samples of a problem become equal "
        "(a lower learning rate, a higher clip_high or temperature)"
    )


def gradient_spike(history: History, limits: HealthConfig) -> str | None:
    """A gradient norm far above those before it, of the same parameters."""
    norms = [value for step, value in history.points("grad_norm") if step >= history.router_steps]
    before = [value for value in norms[-LAG - 1 : -1] if math.isfinite(value)]
    if len(before) < SPIKE_AFTER or not math.isfinite(norms[-1]):
        return None
    if norms[-1] <= limits.grad_norm * median(before) or not median(before):
        return None
    return f"the gradient norm is {norms[-1]:.3g}, and was {median(before):.3g} in the steps before (median)"


def skipped(history: History, limits: HealthConfig) -> str | None:
    """Optimizer steps that were left out as their gradient was not finite."""
    count = history.last("update/skipped", 1)
    if not count or not count[0]:
        return None
    return "an optimizer step was skipped, as its gradient was NaN or infinite: the weights stayed as they were"


def no_gradient(history: History, limits: HealthConfig) -> str | None:
    """Tokens with loss, and nothing to learn from them: no trained weight is behind the loss. A group of equal rewards
    and a student that is its teacher have none by right."""
    norm, tokens = history.last("grad_norm", 1), history.last("trained_tokens", 1) or history.last("tokens", 1)
    kept = {"grpo": history.last("groups/kept", 1), "opd": [0.0]}.get(history.kind, [1.0])
    if norm != [0.0] or not any(tokens) or not any(kept):
        return None
    return (
        f"the gradient norm of a step with {tokens[0]:.0f} tokens is 0: nothing is learnt. The weights that the stage "
        "trains are frozen, or have no part in its loss, as routers have none while their experts are all equal"
    )


def heldout_falls(history: History, limits: HealthConfig) -> str | None:
    """The reward rises and held-out accuracy falls: the policy learns something else than to be right."""
    points = history.points("accuracy/heldout")
    if len(points) < 2:
        return None
    step, now = points[-1]
    best_step, best = max(points[:-1], key=lambda point: point[1])
    counts = history.last("heldout/verified", 1)
    noise = 2 * math.sqrt((best * (1 - best) + now * (1 - now)) / counts[0]) if counts and counts[0] else 0.0
    if best - now <= max(limits.heldout_drop, noise):
        return None
    rewards = [(at, value) for at, value in history.points("reward/mean") if at <= step]
    then = [value for at, value in rewards if at <= best_step][-limits.window :]
    newest = [value for _, value in rewards][-limits.window :]
    if not then or fmean(newest) <= fmean(then):
        return None
    return (
        f"held-out accuracy fell from {best:.1%} (step {best_step}) to {now:.1%} while the reward rose from "
        f"{fmean(then):.3g} to {fmean(newest):.3g}: it is earned without being right, or the data is learnt by heart"
    )


def length_explosion(history: History, limits: HealthConfig) -> str | None:
    """Completions that become much longer within a few steps."""
    before, now = history.last("length/mean", FIRST, skip=LAG), history.last("length/mean", FIRST)
    if len(before) < FIRST:
        before = [value for _, value in history.points("length/mean")[:FIRST]]
    if len(history.points("length/mean")) < 2 * FIRST or fmean(now) <= limits.length_growth * fmean(before):
        return None
    return f"completions grew from {fmean(before):.0f} to {fmean(now):.0f} tokens within {LAG} steps"


def sampler_kl(history: History, limits: HealthConfig) -> str | None:
    """The sampler draws with other probabilities than the trainer computes. With staleness its weights are others."""
    limit = limits.kl_moe if history.moe else limits.kl_dense
    value = history.mean("mismatch/k3", limits.window)
    if any(history.last("staleness/max", limits.window)) or not value > limit:
        return None
    kind = "a mixture of experts (healthy: 1e-3 to 2e-3)" if history.moe else "a dense model (healthy: about 2e-4)"
    return (
        f"sampler and trainer are {value:.2g} nats a token apart (KL, mismatch/k3), much for {kind}: "
        "set diagnose_every to see why (docs/mismatch.md)"
    )


def router_collapse(history: History, limits: HealthConfig) -> str | None:
    """A layer that sends nearly every token to the same experts."""
    value = history.mean("experts/entropy_worst", limits.window)
    if len(history.points("experts/entropy_worst")) < FIRST or not value < limits.experts_entropy:
        return None
    return (
        f"a router has collapsed: in one layer the load's entropy is {value:.2g} (1 is balanced, 0 always the same "
        "experts; experts.jsonl has each layer). Freeze the routers (freeze_router) or lower the learning rate; in "
        "supervised stages set trainer.router_aux_loss"
    )


def dead_experts(history: History, limits: HealthConfig) -> str | None:
    """Experts that no token goes to: parameters that are paid for and learn nothing."""
    value = history.mean("experts/dead", limits.window)
    if len(history.points("experts/dead")) < FIRST or not value > limits.experts_dead:
        return None
    return (
        f"{value:.0%} of the experts get no token: they learn nothing. In supervised stages a load-balancing loss "
        "(trainer.router_aux_loss) brings them back; a router warm-up (router_warmup_steps) helps upcycled models"
    )


def worker_replaced(history: History, limits: HealthConfig) -> str | None:
    """A rollout worker that died or hung."""
    count = history.last("workers/replaced", 1)
    if not count or not count[0]:
        return None
    return f"{count[0]:.0f} rollout worker(s) died or did not answer and were replaced; what they drew was drawn again"


def worker_lost(history: History, limits: HealthConfig) -> str | None:
    """A place where no rollout worker comes up any more, as where its host is gone."""
    count = history.last("workers/lost", 1)
    if not count or not count[0]:
        return None
    return (
        f"{count[0]:.0f} rollout worker(s) are gone for good, as no process came up in their place: the run goes on "
        "with the others, more slowly, until it ends"
    )


Rule = Callable[[History, HealthConfig], str | None]
WARNINGS: Mapping[str, Rule] = {
    "no_verdict": no_verdict,
    "groups_kept": groups_kept,
    "truncated": truncated,
    "entropy_collapse": entropy_collapse,
    "gradient_spike": gradient_spike,
    "skipped": skipped,
    "no_gradient": no_gradient,
    "heldout_falls": heldout_falls,
    "length_explosion": length_explosion,
    "sampler_kl": sampler_kl,
    "router_collapse": router_collapse,
    "dead_experts": dead_experts,
    "worker_replaced": worker_replaced,
    "worker_lost": worker_lost,
}


def all_broken(history: History) -> str | None:
    """The newest step has no verdict at all, as every check failed: it says nothing, and a reward is to be mended."""
    for key in ("verdict/broken", "heldout/broken") if history.kind != "grpo" else ("verdict/broken",):
        if history.last(key, 1) == [1.0]:
            return f"every verdict is BROKEN. The first: {history.evidence or 'see rollouts.jsonl'}"
    return None


def nothing_learnt(history: History, trained_tokens: int) -> str | None:
    """What a stage that is over has not done: train a token, or keep a trace."""
    if history.kind == "reject":
        return f"no trace was kept: {_why_none_kept(history)}" if history.last("kept", 1) == [0.0] else None
    if history.kind == "eval":
        return None
    if not trained_tokens:
        return f"0 tokens were trained: {_why_nothing(history)}"
    steps = [value > 0 for _, value in history.points("update/skipped")]
    in_the_end = len(list(takewhile(bool, reversed(steps))))
    if not in_the_end or 2 * in_the_end < len(steps):
        return None
    which = "all" if in_the_end == len(steps) else f"the last {in_the_end}"
    return (
        f"{which} of its {len(steps)} steps were skipped, as the gradient was NaN or infinite: with these weights "
        "nothing can be learnt. Usual causes: a learning rate that is too high, a model that was loaded so"
    )


def _why_none_kept(history: History) -> str:
    taken = {key.removeprefix("stopped/"): int(points[-1][1]) for key, points in history.series.items()
             if key.startswith("stopped/")}  # fmt: skip
    if not any(taken.values()):
        return "none of the completions is both correct and finished"
    most = max(taken, key=lambda name: taken[name])
    others = [f"{name} {count:,}" for name, count in taken.items() if count and name != most]
    return (
        f"of {sum(taken.values()):,} completions the filter {most} stopped most, {taken[most]:,}"
        f"{' (the others: ' + ', '.join(others) + ')' if others else ''}. All are in draws.jsonl: with other `filters` "
        "at the resume they are filtered anew, and nothing is drawn"
    )


def _why_nothing(history: History) -> str:
    groups, equal, none = (int(history.total(f"groups/{key}")) for key in ("total", "zero_variance", "no_verdict"))
    if not groups:
        return "no sample carried loss"
    everything = len(history.points("truncated"))
    broken, late = history.mean("verdict/broken", everything), history.mean("verdict/timed_out", everything)
    reward, cut = history.mean("reward/mean", everything), history.mean("truncated", everything)
    slow = history.mean("verdict/program_timed_out", everything)
    facts = [
        f"{equal - none} of its {groups} groups had equal rewards"
        + ("" if math.isnan(reward) else f" (mean {reward:.3g})")
    ]
    facts += [f"{none} had no score"] if none else []
    facts += [f"{share:.0%} of the completions {what}" for share, what in (
        (broken, "had a check that broke"), (late, "had a check that timed out"),
        (slow, "were programs past their limit of time"), (cut, "were cut off at max_tokens")
    ) if share > 0]  # fmt: skip
    first = f". The first that broke: {history.evidence}" if broken and history.evidence else ""
    return ", ".join(facts) + first
