"""Kills runs at random points, resumes them, and compares each with the uninterrupted run, bit for bit.

    python bench/resume/kill.py --points 40                     # staleness 0, transformers
    python bench/resume/kill.py --points 5 --engine vllm        # two vLLM workers over Ray
    python bench/resume/kill.py --points 5 --staleness 1        # how far an asynchronous run differs
    python bench/resume/kill.py --points 5 --engine vllm --ranks 2 --victim rank    # and: worker

A point is a random stage, a random number of its steps, and a random part of the step behind them. The run is ended
there with SIGKILL (``--signal TERM``: SIGTERM), resumed with `rlreason resume`, and must leave the same
weights, metrics (clocks aside), rollouts, traces and evaluations. ``--ranks``: a sharded trainer that broadcasts its
weights; ``--victim``: one of its ranks, or one rollout worker (the run must then end well by itself). No process of a
run may be left. Writes bench/resume/results/<name>.json and the marked block of docs/run_directory.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
from documents import replace_block  # noqa: E402

RESULTS = Path(__file__).with_name("results")
SHAPE = """
hidden_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 32
intermediate_size = 64
tie_word_embeddings = true
max_position_embeddings = 256
"""
RECIPE = f"""
name = "killed"
seed = 1
[policy]
model_type = "qwen3_moe"
[policy.model]
{SHAPE}
moe_intermediate_size = 32
num_experts = 4
num_experts_per_tok = 2
[student]
model_type = "qwen3"
[student.model]
{SHAPE}
[data]
train = "arithmetic"
options = {{ min_terms = 2, max_terms = 3, max_total = 9, negatives = false }}
[reward]
accuracy = 1.0
format = 0.1
[trainer]
save_every = 3
ranks = RANKS
[sampler]
engine = "ENGINE"
transport = "TRANSPORT"
kv_cache_gib = 0.0625
[cluster]
kind = "KIND"
rollout_workers = 2
cpus_per_worker = 0.5
threads = 1
[[stage]]
kind = "sft"
name = "cold_start"
model = "policy"
demonstrations = 200
steps = 60
batch_size = 32
eval_every = 20
eval_problems = 20
optimizer = {{ lr = 1e-2, schedule = "cosine" }}
[[stage]]
kind = "grpo"
name = "grpo"
steps = 20
problems_per_step = 8
samples_per_problem = 4
max_tokens = 32
eval_every = 4
eval_problems = 20
staleness = STALENESS
optimizer = {{ lr = 1e-3 }}
[[stage]]
kind = "reject"
name = "traces"
problems = 600
samples_per_problem = 2
max_tokens = 32
[[stage]]
kind = "distill"
name = "distilled"
steps = 40
batch_size = 8
optimizer = {{ lr = 1e-2 }}
[[stage]]
kind = "eval"
name = "final"
models = ["cold_start", "grpo", "distilled"]
problems = 80
max_tokens = 32
"""
#: Metrics that measure time, and the count of workers that were killed.
CLOCKS = ("time", "seconds", "tokens_per_second", "delivery/seconds", "workers/replaced")
#: What Ray calls the processes of a part of the run.
TITLES = {"rank": "Rank", "worker": "Worker"}


def rlreason(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command line in ``folder``, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "rlreason", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], limit: float = 900.0) -> str:
    """Its output; raises RuntimeError with it where the process fails."""
    output, _ = process.communicate(timeout=limit)
    if process.returncode:
        raise RuntimeError(output[-3000:])
    return output


def stages(run: Path) -> list[dict[str, Any]]:
    """The manifest's entries; none where the run has not begun."""
    path = run / "manifest.json"
    found: list[dict[str, Any]] = json.loads(path.read_text())["stages"] if path.exists() else []
    return found


def running(run: Path) -> str | None:
    """The stage that is under way."""
    return next((entry["name"] for entry in stages(run) if entry["status"] == "running"), None)


def victims(process: subprocess.Popen[str], victim: str) -> list[psutil.Process]:
    """The ranks or rollout workers of a run, as far as they have begun."""
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if (title := " ".join(child.cmdline())).startswith("ray::") and TITLES[victim] in title
    ]


def kill_at(
    folder: Path, stage: str, steps: int, delay: float, number: signal.Signals, victim: str
) -> tuple[str, float]:
    """Start a run and end it, or its ``victim``, ``delay`` seconds after ``stage`` had so many lines of metrics; (stage
    that was under way, seconds it took to end)."""
    process, run = rlreason(folder, "run", "recipe.toml", "--out", "run"), folder / "run"

    def reached() -> bool:
        entry = next((one for one in stages(run) if one["name"] == stage), None)
        found = list((run / "stages").glob(f"*-{stage}/metrics.jsonl"))
        lines_so_far = found[0].read_bytes().count(b"\n") if found else 0
        return entry is not None and entry["status"] != "pending" and lines_so_far >= steps

    while not reached() and process.poll() is None:
        time.sleep(0.005)
    time.sleep(delay)
    under_way = running(run) or "between"
    began = time.monotonic()
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    if process.poll() is not None:
        pass  # it was faster
    elif victim != "run":
        for one in victims(process, victim)[-1:]:
            one.send_signal(number)
    elif number is signal.SIGKILL:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.communicate(timeout=900)
    _, left = psutil.wait_procs(family, timeout=60)
    if left:
        raise RuntimeError(f"left behind: {left}")
    return (under_way if process.returncode else "after the end"), time.monotonic() - began


def lines(path: Path) -> list[dict[str, Any]]:
    """A *.jsonl file without what measures time."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        {key: value for key, value in row.items() if key not in CLOCKS and not key.startswith("seconds/")}
        for row in rows
    ]


def _differing(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[str]:
    """Keys that differ in some line, or the number of lines."""
    if len(ours) != len(theirs):
        return [f"{len(ours)} and {len(theirs)} lines"]
    keys = (
        key for one, two in zip(ours, theirs, strict=True) for key in one.keys() | two.keys() if _differ(one, two, key)
    )
    return sorted(set(keys))


def _differ(one: dict[str, Any], two: dict[str, Any], key: str) -> bool:
    return (key in one) != (key in two) or (key in one and one[key] != two[key])


def differences(whole: Path, other: Path) -> list[str]:
    """What of a run is not as in the uninterrupted one."""
    found = []
    for path in sorted((whole / "stages").glob("*/*.jsonl")):
        name = path.relative_to(whole)
        if path.name != "schedule.jsonl":
            found += [f"{name}: {what}" for what in _differing(lines(path), lines(other / name))]
    ours, theirs = stages(whole), stages(other)
    for one, two in zip(ours, theirs, strict=True):
        if one["sha256"] != two["sha256"]:
            found.append(f"weights of {one['name']}")
        if (one["sampled_tokens"], one["trained_tokens"]) != (two["sampled_tokens"], two["trained_tokens"]):
            found.append(f"tokens of {one['name']}")
    for path in sorted((whole / "eval").glob("*.json")):
        if path.read_text() != (other / "eval" / path.name).read_text():
            found.append(f"eval/{path.name}")
    return found


def lost_or_doubled(run: Path) -> list[str]:
    """Metrics of the GRPO stage whose steps are not 0, 1, 2 …, and groups that were trained twice."""
    rows = lines(next((run / "stages").glob("*-grpo/metrics.jsonl")))
    found = [] if [row["step"] for row in rows] == list(range(len(rows))) else ["a step is lost or doubled"]
    logged = Counter(
        (row["group_id"], row["sample"]) for row in lines(next((run / "stages").glob("*-grpo/rollouts.jsonl")))
    )
    return found + [f"{key} twice" for key, count in logged.items() if count > 1]


def outcome(run: Path) -> dict[str, float]:
    """Where the run came out: final accuracy of each model, and the reward of the last five GRPO steps."""
    found = {}
    for path in sorted((run / "eval").glob("*.json")):
        row = json.loads(path.read_text())
        found[row["model"]] = row["accuracy"]["value"]
    rewards = [row["reward/mean"] for row in lines(next((run / "stages").glob("*-grpo/metrics.jsonl")))]
    return found | {"reward": sum(rewards[-5:]) / 5}


def main() -> None:
    """Run the points and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--staleness", type=int, default=0)
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--victim", choices=["run", *TITLES], default="run")
    arguments = parser.parse_args()
    number = signal.Signals[f"SIG{arguments.signal}"]
    over_ray = arguments.engine == "vllm" or arguments.staleness or arguments.ranks > 1
    text = RECIPE.replace("ENGINE", arguments.engine).replace("KIND", "ray" if over_ray else "inline")
    text = text.replace("STALENESS", str(arguments.staleness)).replace("RANKS", str(arguments.ranks))
    text = text.replace("TRANSPORT", "collective" if arguments.ranks > 1 else "host")
    rng, rows = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary, "whole")
        whole.mkdir()
        (whole / "recipe.toml").write_text(text)
        finish(rlreason(whole, "run", "recipe.toml", "--out", "run"))
        counts = {
            entry["name"]: len(lines(next((whole / "run" / "stages").glob(f"*-{entry['name']}/metrics.jsonl"))))
            for entry in stages(whole / "run")
        }
        taken = {entry["name"]: entry["seconds"] for entry in stages(whole / "run")}
        for point in range(arguments.points):
            folder = Path(temporary, f"point{point}")
            folder.mkdir()
            (folder / "recipe.toml").write_text(text)
            aim = rng.choice(list(counts))
            steps = rng.randrange(counts[aim])
            delay = rng.uniform(0.0, 1.2 * taken[aim] / counts[aim])
            stage, took = kill_at(folder, aim, steps, delay, number, arguments.victim)
            if stage != "after the end":
                finish(rlreason(folder, "resume", "run"))
            wrong = lost_or_doubled(folder / "run")
            differs = differences(whole / "run", folder / "run")
            at = f"{aim}, step {steps}, {delay:.2f} s later"
            row = {"stage": stage, "at": at, "differs": differs, "wrong": wrong, "ended": round(took, 2)}
            row["outcome"] = outcome(folder / "run")
            rows.append(row)
            print(point, row, flush=True)
            shutil.rmtree(folder)
        uninterrupted = [outcome(whole / "run")]
        for more in range(arguments.points - 1 if arguments.staleness else 0):  # they differ among themselves
            folder = Path(temporary, f"whole{more}")
            folder.mkdir()
            (folder / "recipe.toml").write_text(text)
            finish(rlreason(folder, "run", "recipe.toml", "--out", "run"))
            uninterrupted.append(outcome(folder / "run"))
    write(arguments, rows, uninterrupted)


def write(arguments: argparse.Namespace, rows: list[dict[str, Any]], uninterrupted: list[dict[str, float]]) -> None:
    """Results as data, and their line in the documentation."""
    engine = arguments.engine if arguments.ranks == 1 else f"{arguments.engine}+{arguments.ranks}ranks"
    how = arguments.signal.lower() if arguments.victim == "run" else f"{arguments.signal.lower()}_{arguments.victim}"
    name = f"{engine}-staleness{arguments.staleness}-{how}"
    RESULTS.mkdir(exist_ok=True)
    result = {"points": rows, "uninterrupted": uninterrupted}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    document()


def document() -> None:
    """The table of docs/run_directory.md, of all results that are there."""
    table = [
        "| ended by | engine | staleness | points, by stage | equal bit for bit | steps or groups lost or doubled |"
    ]
    table.append("|---|---|---|---|---|---|")
    notes = []
    for path in sorted(RESULTS.glob("*.json")):
        engine, staleness, how = path.stem.rsplit("-", 2)
        found = json.loads(path.read_text())
        points = found["points"]
        by_stage = ", ".join(f"{stage} {count}" for stage, count in Counter(p["stage"] for p in points).items())
        by_stage = by_stage.replace("after the end", "ended by itself")
        equal, wrong = sum(not point["differs"] for point in points), sum(bool(point["wrong"]) for point in points)
        lag = staleness.removeprefix("staleness")
        number, _, victim = how.partition("_")
        ended = f"SIG{number.upper()}{f' of a {victim}' if victim else ''}"
        engine = engine.replace("+", ", ").replace("ranks", " ranks, collective")
        table.append(f"| {ended} | {engine} | {lag} | {len(points)}: {by_stage} | {equal} of {len(points)} | {wrong} |")
        slowest = max(point["ended"] for point in points)
        if how == "term":
            notes.append(f"SIGTERM, {engine}, staleness {lag}: ended within {slowest:.1f} s at most, state saved.")
        if lag != "0":
            notes.append(f"Staleness {lag}: {_spread(found)}")
    text = "\n".join([*table, *(f"\n{note}" for note in notes)])
    replace_block(ROOT / "docs" / "run_directory.md", "kill", text)


def _spread(found: dict[str, Any]) -> str:
    """How far resumed asynchronous runs are from uninterrupted ones, beside how far those are from each other."""
    parts = []
    for kind, outcomes in (
        ("uninterrupted", found["uninterrupted"]),
        ("ended and resumed", [point["outcome"] for point in found["points"]]),
    ):
        rewards = [one["reward"] for one in outcomes]
        parts.append(
            f"{len(rewards)} runs {kind}: mean reward of the last five steps {statistics.fmean(rewards):.3f} "
            f"({min(rewards):.3f} to {max(rewards):.3f})"
        )
    return "what drew a token depends on time, so no two runs are equal: " + "; ".join(parts) + "."


if __name__ == "__main__":
    main()
