"""Programs per second: ours against a bare ``python -I``, human-eval's and LiveCodeBench's way, in one run.

    python bench/sandbox/compare.py --data ../shared/data --human-eval CHECKOUT --livecodebench CHECKOUT

CHECKOUT: clones of github.com/openai/human-eval and github.com/LiveCodeBench/LiveCodeBench; a way whose checkout is
not given is left out. First every way must give every program its known verdict; then the ways take turns, round by
round, over the same programs. Writes bench/sandbox/results/compare.json and the marked block of docs/sandbox.md.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from programs import ROOT, Task, fill_block, function_tasks, stdin_tasks

from rlreason.rewards.jail.jail import capabilities
from rlreason.run.manifest import describe_hardware

_RESULTS = ROOT / "bench" / "sandbox" / "results" / "compare.json"
#: Ways that can't take a kind of test.
_NOT = {("human_eval", "stdin")}


class Way:
    """A process of ways.py."""

    def __init__(self, name: str, workers: int, folder: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("ways.py")), name, str(workers), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def run(self, tasks: Sequence[Task]) -> tuple[list[bool], float]:
        """Verdicts and wall seconds of one batch."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([asdict(task) for task in tasks]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} died")
        answer = json.loads(line)
        return answer["verdicts"], answer["seconds"]


def gate(way: Way, kind: str, tasks: Sequence[Task]) -> None:
    """Every way gives every program its known verdict, or nothing is measured."""
    verdicts, _ = way.run(tasks)
    wrong = [at for at, task in enumerate(tasks) if verdicts[at] != task.correct]
    if wrong:
        for at in wrong[:5]:
            print(
                f"--- {way.name}, {kind} {at}: {verdicts[at]}, expected {tasks[at].correct}\n{tasks[at].source[-600:]}"
            )
        raise SystemExit(f"{way.name}: {len(wrong)} of {len(tasks)} {kind} verdicts differ; nothing was measured")


def measure(ways: Sequence[Way], kind: str, tasks: list[Task], rounds: int) -> dict[str, list[float]]:
    """Seconds per program of each way and round. The ways take turns, each round in another order."""
    able = [way for way in ways if (way.name, kind) not in _NOT]
    for way in able:
        gate(way, kind, tasks)
    seconds: dict[str, list[float]] = {way.name: [] for way in able}
    for number in range(rounds):
        shuffled = random.Random(number).sample(tasks, len(tasks))
        for way in able if number % 2 == 0 else reversed(able):
            verdicts, wall = way.run(shuffled)
            assert verdicts == [task.correct for task in shuffled], way.name
            seconds[way.name].append(wall / len(tasks))
    return seconds


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median programs per second, and the median over rounds of the ratio to the bare subprocess."""
    bare = seconds["subprocess"]
    return {
        name: {
            "programs_per_second": round(1 / statistics.median(walls), 1),
            "ms_per_program": round(1000 * statistics.median(walls), 2),
            "ratio_to_subprocess": round(statistics.median(b / w for b, w in zip(bare, walls, strict=True)), 2),
            "ratio_low": round(min(b / w for b, w in zip(bare, walls, strict=True)), 2),
            "ratio_high": round(max(b / w for b, w in zip(bare, walls, strict=True)), 2),
        }
        for name, walls in seconds.items()
    }


def hardware() -> dict[str, object]:
    return {
        "cpu": describe_hardware([]).cpu,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": [round(one, 2) for one in os.getloadavg()],
        "uid": os.getuid(),
    }


def table(record: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [
        "| tests | way | programs/s | ms each | times bare `python -I` (lowest, highest round) |",
        "|---|---|---|---|---|",
    ]
    for kind, ways in record.items():
        for name, row in ways.items():
            lines.append(
                f"| {kind} | {name} | {row['programs_per_second']:g} | {row['ms_per_program']:g} "
                f"| {row['ratio_to_subprocess']:g} ({row['ratio_low']:g}, {row['ratio_high']:g}) |"
            )
    return "\n".join(lines)


def describe(result: dict[str, Any]) -> str:
    """The table, with what it was measured on."""
    machine, cases = result["hardware"], result["cases"]
    counts = ", ".join(f"{number} {kind} programs ({cases[kind]} cases)" for kind, number in result["programs"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, kernel {machine['kernel']}, Python {machine['python']}, "
        f"{result['workers']} workers, {result['rounds']} rounds, load {machine['load_before'][0]:g} before: {counts}, "
        f"half of them wrong.\n\n{table(result['summary'])}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with humaneval.jsonl")
    parser.add_argument("--human-eval", default="")
    parser.add_argument("--livecodebench", default="")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=_RESULTS)
    options = parser.parse_args()
    folders = {"ours": ".", "subprocess": ".", "human_eval": options.human_eval, "livecodebench": options.livecodebench}
    before = hardware()
    ways = [Way(name, options.workers, folder) for name, folder in folders.items() if folder]
    try:
        kinds = {"function": function_tasks(options.data), "stdin": stdin_tasks() * 8}
        seconds = {kind: measure(ways, kind, tasks, options.rounds) for kind, tasks in kinds.items()}
    finally:
        for way in ways:
            way.__exit__()
    record = {kind: summary(walls) for kind, walls in seconds.items()}
    result = {
        "hardware": {**before, "load_after": [round(one, 2) for one in os.getloadavg()]},
        "isolation": str(capabilities()),
        "workers": options.workers,
        "rounds": options.rounds,
        "programs": {kind: len(tasks) for kind, tasks in kinds.items()},
        "cases": {kind: sum(len(t.tests["cases"]) for t in tasks) for kind, tasks in kinds.items()},  # type: ignore[arg-type,misc]
        "summary": record,
        "seconds_per_program": seconds,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.out == _RESULTS:
        fill_block("compare", describe(result))
    print(describe(result))


if __name__ == "__main__":
    main()
