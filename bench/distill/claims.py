"""The four claims of the experiment on ways of teaching, fixed before its first run, and how they are judged.

A claim is made when all seeds agree in sign *and* the interval of the pooled paired difference (problems as blocks,
Holm over the four) excludes 0.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

CLAIMS = (
    ("a", "on-policy distillation beats SFT on verified traces", "5 opd", "1 verified"),
    ("b", "on-policy distillation beats GRPO", "5 opd", "4 grpo"),
    ("c", "on-policy distillation beats a fixed negative advantage", "5 opd", "8 fixed"),
    ("d", "verified traces beat unfiltered ones", "1 verified", "2 unfiltered"),
)
#: t of two degrees of freedom, 95 %.
T2 = 4.30


def judged(seeds: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """The four claims, by the rule in the first lines. Seed -> arm -> a 1 or 0 for each problem."""
    found = []
    for key, text, better, worse in CLAIMS:
        by_seed = [
            [float(a) - float(b) for a, b in zip(one[better], one[worse], strict=True)] for one in seeds.values()
        ]
        means = [statistics.fmean(one) for one in by_seed]
        blocks = [statistics.fmean(one) for one in zip(*by_seed, strict=True)]
        mean, error = statistics.fmean(blocks), statistics.stdev(blocks) / math.sqrt(len(blocks))
        p = math.erfc(abs(mean) / error / math.sqrt(2)) if error else float(mean == 0)
        spread = T2 * statistics.stdev(means) / math.sqrt(len(means)) if len(means) == 3 else math.nan
        found.append({"claim": key, "text": text, "by_seed": means, "mean": mean, "error": error, "p": p, "t": spread})
    holds = True  # Holm: behind the first that does not hold none does
    for rank, one in enumerate(sorted(found, key=lambda each: each["p"])):
        level = 0.05 / (len(found) - rank)
        z = statistics.NormalDist().inv_cdf(1 - level / 2)
        one["interval"] = [one["mean"] - z * one["error"], one["mean"] + z * one["error"]]
        holds = holds and one["p"] <= level
        one["made"] = holds and all(each > 0 for each in one["by_seed"]) and one["interval"][0] > 0
    return found


def table(document: dict[str, Any]) -> str:
    """As Markdown."""
    names = list(next(iter(document["seeds"].values()))["greedy"])
    lines = ["| arm | greedy, by seed | sampled, by seed | response tokens | TFLOP |", "|---|---|---|---|---|"]
    for name in names:
        each = document["seeds"].values()
        greedy = " / ".join(f"{statistics.fmean(map(float, one['greedy'][name])):.1%}" for one in each)
        sampled = " / ".join(f"{one['sampled'][name]:.1%}" for one in each)
        done = [one["operations"][name] / 1e12 for one in each if name in one["operations"]]
        work = f"{statistics.fmean(done):.1f}" if done else "–"
        lines.append(f"| {name} | {greedy} | {sampled} | {max(one['tokens'][name] for one in each):,} | {work} |")
    lines += ["", "| claim | difference (Holm's interval) | by seed | t interval | made |", "|---|---|---|---|---|"]
    for one in document["claims"]:
        low, high = one["interval"]
        seeds = " / ".join(f"{100 * each:+.1f}" for each in one["by_seed"])
        answer = "yes" if one["made"] else "no"
        lines.append(
            f"| ({one['claim']}) {one['text']} | {100 * one['mean']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) "
            f"| {seeds} | ± {100 * one['t']:.1f} | {answer} |"
        )
    return "\n".join(lines)
