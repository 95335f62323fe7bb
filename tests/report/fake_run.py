"""A run directory as `rlreason run` writes it, made up: the report's tests and its screenshots need no training.

The shapes are realistic (a cold start that leaves room, a GRPO climb, a student that keeps most of it) and the
numbers are arithmetic on a seeded generator, so two calls write the same files.

    python tests/report/fake_run.py DIR [done|running|failed] [rollouts]
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["done", "running", "failed"]
Json = dict[str, Any]

START = 1_790_000_000.0
POLICY, STUDENT = 1_312_640, 629_888
RECIPE = """\
# <quickstart> & co: R1 from nothing on two cores
name = "quickstart"
seed = 0

[policy]
architecture = "qwen3_moe"
hidden_size = 128

[data]
train = "arithmetic"

[[stage]]
name = "cold_start"
kind = "sft"
steps = 200

[[stage]]
name = "grpo"
kind = "grpo"
steps = 70
"""

#: Held-out accuracy of the finished models.
RIGHT = {"cold_start": 0.442, "grpo": 0.814, "student": 0.772, "student_control": 0.52}

#: Text that a model or a data set may produce and that must arrive on the page as plain text.
HOSTILE = (
    "</script><script>window.pwned=1</script>",
    '<img src="https://evil.example/x.png" onerror="window.pwned=1">',
    "<!-- <script> -->]]>{{ 7*7 }}{% raw %}&lt;b&gt;\u2028\u2029",
    "bell\u0007 null\u0000 escape\u001b[31m del\u007f bidi\u202eevil\u2066 zero\u200bwidth",
    "lone surrogate \ud83d and astral \U0001f600",
    "<think>never closed <answer>1</answer><answer>2",
)


@dataclass(frozen=True)
class Plan:
    """One stage of the made-up run."""

    name: str
    kind: str
    steps: int
    seconds: float
    parents: tuple[str, ...] = ()
    parameters: int | None = None
    active: int | None = None


PLANS = (
    Plan("cold_start", "sft", 200, 88.4, ("policy",), POLICY, 788_352),
    Plan("grpo", "grpo", 70, 231.7, ("cold_start",), POLICY, 788_352),
    Plan("traces", "reject", 8, 24.9, ("grpo",)),
    Plan("student", "distill", 160, 61.3, ("student", "traces"), STUDENT, STUDENT),
    Plan("student_control", "sft", 160, 60.8, ("student",), STUDENT, STUDENT),
    Plan("final", "eval", 4, 14.2, ("cold_start", "grpo", "student", "student_control")),
)


def wilson(correct: int, count: int) -> Json:
    """A proportion with its Wilson 95 % interval, in the shape of `rlreason.types.Interval`."""
    p, z = correct / count, 1.959964
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return {"value": p, "low": max(0.0, centre - half), "high": min(1.0, centre + half), "count": count}


def climb(t: float, low: float, high: float) -> float:
    """A learning curve: slow, fast, flat; t runs from 0 to 1."""
    return low + (high - low) / (1 + math.exp(-9 * (t - 0.42)))


def supervised(plan: Plan, rng: random.Random) -> Iterator[Json]:
    """Scalars of an sft or distill stage, one dict a step."""
    top = {"cold_start": 0.44, "student": 0.772, "student_control": 0.52}[plan.name]
    for step in range(1, plan.steps + 1):
        t = step / plan.steps
        row: Json = {
            "loss": 2.6 * math.exp(-5 * t) + 0.31 + rng.gauss(0, 0.02),
            "lr": 4e-3 * min(1.0, step / 10) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t))),
            "grad_norm": 0.5 + 3 * math.exp(-7 * t) * math.exp(rng.gauss(0, 0.3)),
            "tokens": 128 * 33 + rng.randrange(200),
        }
        if step % 40 == 0 or step == plan.steps:
            row["accuracy/heldout"] = round(top * (1 - math.exp(-3.2 * t)) / (1 - math.exp(-3.2)) * 500) / 500
        yield row


def reinforced(plan: Plan, rng: random.Random) -> Iterator[Json]:
    """Scalars of a GRPO stage, one dict a step."""
    for step in range(1, plan.steps + 1):
        t = step / plan.steps
        accuracy = min(0.97, max(0.02, climb(t, 0.35, 0.80) + rng.gauss(0, 0.025)))
        count, tokens = 512, 512 * (24 + 7 * t) + rng.gauss(0, 300)
        unparsed, timed_out = int(count * 0.08 * math.exp(-5 * t)), int(rng.random() < 0.06)
        correct = int(accuracy * count)
        sample, score, train = 1.9 + rng.gauss(0, 0.1), 0.05 + rng.random() * 0.02, 1.2 + rng.gauss(0, 0.05)
        zero = int(64 * abs(accuracy - 0.35) * 0.9)
        row: Json = {
            "reward/mean": accuracy + 0.1 * (1 - unparsed / count),
            "reward/std": math.sqrt(accuracy * (1 - accuracy)),
            "reward/accuracy": accuracy,
            "reward/format": 1 - unparsed / count,
            "reward/length": -0.04 * (1 - t) + rng.gauss(0, 0.004),
            "accuracy/train": accuracy,
            "length/mean": tokens / count,
            "length/max": 48 if rng.random() < 0.4 else 44 + rng.randrange(4),
            "truncated": 0.02 * math.exp(-3 * t) + rng.random() * 0.002,
            "entropy": 0.42 * math.exp(-1.4 * t) + rng.gauss(0, 0.008),
            "kl/reference": 0.09 * t + abs(rng.gauss(0, 0.003)),
            "mismatch/mean": 2.1e-7 * math.exp(rng.gauss(0, 0.2)),
            "mismatch/max": 9.5e-6 * math.exp(rng.gauss(0, 0.5)),
            "mismatch/k3": 3.0e-13 * math.exp(rng.gauss(0, 0.4)) - 2e-13,
            "clip_fraction": 0.004 * math.exp(rng.gauss(0, 0.4)),
            "ratio/max": 1.3 * math.exp(abs(rng.gauss(0, 0.2))),
            "loss": rng.gauss(0, 0.01),
            "grad_norm": 0.4 * math.exp(rng.gauss(0, 0.35)),
            "lr": 3e-4,
            "groups/kept": 64 - zero,
            "groups/zero_variance": zero,
            "groups/no_verdict": timed_out,
            "verdict/correct": correct / count,
            "verdict/wrong": (count - correct - unparsed - timed_out) / count,
            "verdict/unparsed": unparsed / count,
            "verdict/timed_out": timed_out / count,
            "verdict/broken": 0.0,
            "tokens": int(tokens),
            "tokens_per_second": tokens / (sample + score + train),
            "seconds/sample": sample,
            "seconds/score": score,
            "seconds/train": train,
        }
        if step == 23:
            row["kl/reference"] = float("nan")
        if step % 10 == 0:
            row["accuracy/heldout"] = round(climb(t, 0.42, 0.825) * 500) / 500
        yield row


def diagnosed(steps: range) -> Iterator[Json]:
    """Lines of mismatch.jsonl: a bfloat16 MoE sampler, one step behind; flipped experts come to weigh the most."""
    for step in steps:
        grown = (step + 1) / steps.stop
        means = {"staleness": 0.01, "precision": 0.006, "router": 0.03 * grown, "transform": 0.0, "residual": 0.004}
        parts = {
            cause: {"mean": mean, "max": 40 * mean, "k3": mean**2, "share": mean / sum(means.values())}
            for cause, mean in means.items()
        }
        yield {
            "step": step,
            "tokens": 4096,
            "completions": 51,
            "left_out": 3,
            "versions": [step - 1, step],
            "trainer_dtype": "float32",
            "sampler_dtype": "bfloat16",
            "temperature": 0.9,
            "sampler_temperature": 0.9,
            "experts": "own",
            "rerouted": 0.0213,
            "total": {"mean": 0.031, "max": 1.83, "k3": 0.0027, "share": 0.0},
            "parts": parts,
            "advice": {
                "cause": "router",
                "cure": "leave out the tokens that differ wildly (IcePop, Ling team 2025)",
                "setting": 'correction = "icepop", correction_low = 0.5, correction_high = 5.0',
                "applied": False,
                "reason": "the sampler sends tokens to other experts",
            },
        }


def rejected(plan: Plan, rng: random.Random) -> Iterator[Json]:
    """Scalars of a rejection-sampling stage, one dict a batch of problems: totals so far, but for the tokens."""
    problems = kept = solved = 0
    for _ in range(plan.steps):
        problems, solved, kept = problems + 256, solved + 256 - rng.randrange(20, 50), kept + 300 + rng.randrange(40)
        yield {"problems": problems, "kept": kept, "acceptance": solved / problems, "tokens": 512 * 30}


def measured(plan: Plan, rng: random.Random) -> Iterator[Json]:
    """Scalars of an eval stage, one dict a model."""
    for value in RIGHT.values():
        yield {"accuracy/heldout": value}


def solve(rng: random.Random) -> tuple[str, str, str]:
    """One arithmetic problem: prompt, thought, gold answer."""
    numbers = [rng.randrange(1, 10) for _ in range(rng.randrange(2, 6))]
    total, prompt, thought = numbers[0], str(numbers[0]), []
    for number in numbers[1:]:
        sign = rng.choice("+-")
        result = total + number if sign == "+" else total - number
        thought.append(f"{total}{sign}{number}={result}")
        prompt, total = f"{prompt}{sign}{number}", result
    return prompt + "=", ";".join(thought), str(total)


def completion(skill: float, thought: str, gold: str, rng: random.Random) -> Json:
    """One scored completion by a policy that is right with probability `skill`."""
    if rng.random() < skill:
        verdict, answer = "correct", gold
        text = f"<think>{thought}</think><answer>{answer}</answer>"
    elif rng.random() < 0.1:
        verdict, answer = "unparsed", ""
        text = f"<think>{thought};{thought};{thought}"[:60]
    else:
        verdict, answer = "wrong", str(int(gold) + rng.choice((-2, -1, 1, 2)))
        text = f"<think>{thought[: max(3, len(thought) - 1)]}</think><answer>{answer}</answer>"
    accuracy, layout = float(verdict == "correct"), float(verdict != "unparsed")
    return {
        "response": text,
        "verdict": verdict,
        "score": accuracy + 0.1 * layout,
        "extracted": answer or None,
        "parts": {"accuracy": accuracy, "format": layout},
        "detail": "no <answer> found" if verdict == "unparsed" else "",
        "tokens": len(text) // 2 + 2,
        "finish_reason": "length" if verdict == "unparsed" else "stop",
    }


def rollouts(plan: Plan, count: int, rng: random.Random) -> Iterator[Json]:
    """About `count` rollouts in groups of eight, spread over the steps."""
    groups = max(1, count // 8)
    for g in range(groups):
        step = g * plan.steps // groups
        prompt, thought, gold = solve(rng)
        skill = climb(step / plan.steps, 0.35, 0.80) if plan.kind == "grpo" else 0.8
        samples = [completion(skill, thought, gold, rng) for _ in range(8)]
        scores = [s["score"] for s in samples]
        mean = sum(scores) / 8
        std = math.sqrt(sum((s - mean) ** 2 for s in scores) / 8)
        for index, sample in enumerate(samples):
            name = f"arithmetic-train-{g % 900}"
            head = {"step": step, "group_id": f"{plan.name}/{step}/{name}", "problem_id": name}
            tail = {
                "advantage": (sample["score"] - mean) / std if std and plan.kind == "grpo" else None,
                "policy_version": step,
            }
            yield head | {"prompt": prompt, "reference": gold, "sample": index} | sample | tail


def hostile_rows(step: int) -> list[Json]:
    """One rollout per hostile text, in every field that holds text."""
    huge = ("spam " * 20_000,)
    return [
        {
            "step": step,
            "group_id": f"hostile/{i}{text}",
            "problem_id": text,
            "prompt": text,
            "reference": [text, "b"],
            "sample": i,
            "response": f"<think>{text}</think><answer>{text}</answer>",
            "verdict": "timed_out" if i % 2 else "broken",
            "score": None,
            "extracted": text,
            "parts": {text[:500]: 0.5},
            "detail": text,
            "advantage": None,
            "tokens": 9,
            "finish_reason": "stop",
            "policy_version": 1,
        }
        for i, text in enumerate(HOSTILE + huge)
    ]


def write_lines(path: Path, rows: list[Json], torn: bool = False) -> None:
    """JSON lines; `torn` cuts the last one in half, as a kill while writing does."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text[: len(text) - len(json.dumps(rows[-1])) // 2] if torn else text)


def write_stage(run_dir: Path, number: int, plan: Plan, torn: bool, count: int) -> None:
    """metrics.jsonl and rollouts.jsonl of one stage."""
    folder = run_dir / "stages" / f"{number:02d}-{plan.name}"
    folder.mkdir(parents=True)
    rng = random.Random(number)
    makers = {"sft": supervised, "distill": supervised, "grpo": reinforced, "reject": rejected, "eval": measured}
    rows, now = [], START + 300 * number
    for step, scalars in enumerate(makers[plan.kind](plan, rng)):
        seconds = plan.seconds / plan.steps * (1 + rng.gauss(0, 0.04))
        now += seconds
        head = {"stage": plan.name, "kind": plan.kind, "step": step, "policy_version": step + 1, "time": now}
        rows.append(head | {"seconds": seconds} | scalars)
    write_lines(folder / "metrics.jsonl", rows[: len(rows) * 6 // 10] if torn else rows, torn)
    if plan.kind == "grpo":
        due = range(4, plan.steps * 6 // 10 if torn else plan.steps, 5)
        write_lines(folder / "mismatch.jsonl", list(diagnosed(due)), torn)
    if plan.kind in ("grpo", "reject"):
        last = plan.steps * 6 // 10 if torn else plan.steps - 1
        kept = [row for row in rollouts(plan, count, rng) if row["step"] <= last]
        write_lines(folder / "rollouts.jsonl", kept + hostile_rows(last), torn)


def write_evals(run_dir: Path) -> None:
    """Four models on one suite, 500 problems, with accuracy by number of terms."""
    (run_dir / "eval").mkdir()
    for plan in PLANS:
        if plan.name not in RIGHT:
            continue
        share = RIGHT[plan.name]
        by_tag = {
            f"terms={n}": wilson(round(125 * min(0.995, max(0.02, share + (3.5 - n) * 0.17 * (1.15 - share)))), 125)
            for n in range(2, 6)
        }
        report = {
            "stage": "final",
            "model": plan.name,
            "suite": "heldout",
            "samples": 1,
            "temperature": 0,
            "accuracy": wilson(round(share * 500), 500),
            "pass_at_k": {"1": share},
            "verdicts": {"correct": round(share * 500), "wrong": 500 - round(share * 500)},
            "by_tag": by_tag,
            "mean_tokens": 28.4 + 3 * share,
            "parameters": plan.parameters,
            "active_parameters": plan.active,
        }
        (run_dir / "eval" / f"final-{plan.name}.json").write_text(json.dumps(report))


def stage_entry(number: int, plan: Plan, status: str) -> Json:
    """The manifest's record of one stage."""
    begun, done = status != "pending", status == "done"
    keeps = done and plan.parameters is not None
    return {
        "name": plan.name,
        "kind": plan.kind,
        "status": status,
        "started": f"2026-09-21T14:{number:02d}:00+00:00" if begun else None,
        "finished": f"2026-09-21T14:{number:02d}:59+00:00" if done or status == "failed" else None,
        "seconds": plan.seconds if done else 0.0,
        "checkpoint": f"stages/{number:02d}-{plan.name}/checkpoint" if keeps else None,
        "parameters": plan.parameters if begun else None,
        "active_parameters": plan.active if begun else None,
        "parents": list(plan.parents),
        "sha256": f"{number:02x}" * 32 if keeps else None,
        "error": "the loss is not finite at step 43 <b>" if status == "failed" else None,
    }


def manifest(state: State) -> Json:
    """manifest.json; a run that is not done stands at its second stage."""
    statuses = ["done"] * len(PLANS) if state == "done" else ["done", state] + ["pending"] * (len(PLANS) - 2)
    stages = [stage_entry(n, plan, status) for n, (plan, status) in enumerate(zip(PLANS, statuses, strict=True), 1)]
    return {
        "rlreason_version": "0.1.0",
        "created": "2026-09-21T14:00:12+00:00",
        "command": "rlreason run quickstart",
        "git_commit": "56e96e5c0ffee0123456789abcdef0123456789a",
        "python": "3.11.7",
        "packages": {"torch": "2.13.0", "transformers": "5.16.1", "numpy": "2.3.4"},
        "hardware": {"cpu": "Example CPU @ 2.60GHz", "cores": 2, "memory_gib": 15.6, "gpus": []},
        "seed": 0,
        "data": {
            "train": {"source": "arithmetic", "fingerprint": "9f2c" * 8, "size": None},
            "heldout": {"source": "arithmetic", "fingerprint": "17ab" * 8, "size": 500},
        },
        "stages": stages,
        "totals": {
            "seconds": sum(s["seconds"] or 0 for s in stages),
            "sampled_tokens": 1_102_331,
            "trained_tokens": 2_871_003,
        },
    }


def write_fake_run(run_dir: Path, state: State = "done", count: int = 1200) -> Path:
    """Write a whole run directory and return it; `running` and `failed` stop in the GRPO stage, mid-line."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "recipe.toml").write_text(RECIPE)
    (run_dir / "manifest.json").write_text(json.dumps(manifest(state), indent=1))
    for number, plan in enumerate(PLANS, 1):
        if state != "done" and number > 2:
            continue
        write_stage(run_dir, number, plan, torn=state != "done" and number == 2, count=count)
    if state == "done":
        write_evals(run_dir)
    return run_dir


if __name__ == "__main__":
    where, *rest = sys.argv[1:]
    wanted: Any = rest[0] if rest else "done"
    print(write_fake_run(Path(where), wanted, int(rest[1]) if len(rest) > 1 else 1200))
