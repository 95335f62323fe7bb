"""Ten thousand programs, 2 % of them hostile, through ``ProgramPool``: verdicts, memory, processes left.

    python bench/sandbox/flood.py --data ../shared/data [--programs 10000] [--workers 2]

Refuses to run where the sandbox has no process namespace of its own: the hostile part holds fork and memory bombs.
Writes bench/sandbox/results/flood.json. Exit status 1 where a verdict is wrong, a process is left, or memory grew.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from compare import hardware
from programs import ROOT, fill_block, function_tasks, stdin_tasks

from rlreason.rewards.jail.jail import Limits, capabilities
from rlreason.rewards.programs.pool import ProgramPool

_RESULTS = ROOT / "bench" / "sandbox" / "results" / "flood.json"
_SHARE = 0.02
#: What a header of hostile_programs says -> verdicts that satisfy it; anything else: any verdict but correct.
_VERDICTS = {"pass": {"correct"}, "fail": {"wrong"}, "timeout": {"timed_out"}}
_TESTS = {
    "S": {"type": "stdin", "cases": [{"input": f"{a} {b}\n", "output": f"{a + b}\n"} for a, b in [(2, 3), (10, -4)]]},
    "F": {
        "type": "function",
        "entry_point": "add",
        "cases": [{"args": [a, b], "expected": a + b} for a, b in [(2, 3), (10, -4), (7, 7)]],
    },
}


#: Name and detail of every program with another verdict than allowed; samples over time; seconds.
Outcome = tuple[list[tuple[str, str]], list["Sample"], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One program on its way. Example: ``Shot(name="53_busy_loop", source="", tests={}, allowed=("timed_out",))``."""

    name: str
    source: str
    tests: dict[str, object]
    allowed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The state of this process and its descendants at one moment. ``memory``: MiB that belong to no file (pages of
    files are shared with whatever else runs), pages shared after a fork by their share.

    ``zombies`` of the whole machine: one whose parent went would no longer be a descendant.
    """

    seconds: float
    done: int
    memory: float
    processes: int
    zombies: int
    descriptors: int


def hostile(folder: Path) -> Iterator[Shot]:
    for path in sorted(folder.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        kind = re.search(r"# KIND: (\w)", text)
        shows = re.search(r"# SAFE SANDBOX MUST SHOW: verdict=(\w+)", text)
        assert kind
        allowed = _VERDICTS.get(shows[1] if shows else "", {"wrong", "timed_out"})
        # The dangerous ones run only where they find this variable.
        source = f"import os; os.environ['HOSTILE_OK'] = '1'\n{text}"
        yield Shot(name=path.stem, source=source, tests=_TESTS[kind[1]], allowed=tuple(sorted(allowed)))


def shots(data: Path, count: int) -> list[Shot]:
    """Honest programs, right and wrong, with hostile ones at random places; the same list for the same count."""
    chance = random.Random(0)
    honest = [
        Shot(
            name="honest",
            source=task.source,
            tests=task.tests,
            allowed=("correct",) if task.correct else ("wrong",),
        )
        for task in [*function_tasks(data), *stdin_tasks()]
    ]
    bad = [shot for shot in hostile(data / "hostile_programs") if "control" not in shot.name]
    amount = round(count * _SHARE)
    chosen = [bad[at % len(bad)] for at in range(amount)] + [honest[at % len(honest)] for at in range(count - amount)]
    chance.shuffle(chosen)
    return chosen


def descendants() -> list[int]:
    found = [os.getpid()]
    for pid in found:
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        except OSError:
            continue
    return found


def zombies() -> int:
    count = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            count += path.read_text().rpartition(")")[2].split()[0] == "Z"
    return count


def sample(started: float, done: int) -> Sample:
    pids = descendants()
    memory = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            match = re.search(r"^Pss_Anon:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
            memory += int(match[1]) if match else 0
    return Sample(
        seconds=round(time.monotonic() - started, 1),
        done=done,
        memory=round(memory / 1024, 1),
        processes=len(pids),
        zombies=zombies(),
        descriptors=len(os.listdir("/proc/self/fd")),
    )


def settled(first: Sample, done: int) -> Sample:
    """The state after the run. Other programs of this machine have zombies for moments: those are waited for."""
    for _ in range(20):
        time.sleep(0.5)
        last = sample(time.monotonic(), done)
        if last.zombies <= first.zombies:
            break
    return last


async def warm_up(pool: ProgramPool, data: Path) -> None:
    """Heaps grow once to what the largest job needs: a worker keeps one buffer of ``output_bytes`` after a flood."""
    (largest,) = [shot for shot in hostile(data / "hostile_programs") if shot.name == "69_output_flood"]
    honest = [shot for shot in shots(data, 400) if shot.name == "honest"]
    await asyncio.gather(*(pool.check(shot.source, shot.tests) for shot in [*[largest] * 3 * pool.workers, *honest]))


async def flood(chosen: list[Shot], pool: ProgramPool) -> Outcome:
    wrong: list[tuple[str, str]] = []
    started, samples, done = time.monotonic(), [], 0
    async for result in pool.stream((shot.source, shot.tests) for shot in chosen):
        shot = chosen[done]
        if result.verdict.value not in shot.allowed:
            wrong.append((shot.name, f"{result.verdict.value} {result.detail}"))
        done += 1
        if done % 200 == 0:
            samples.append(sample(started, done))
    return wrong, samples, time.monotonic() - started


async def measure(data: Path, chosen: list[Shot], workers: int, limits: Limits) -> Outcome:
    async with ProgramPool(workers=workers, limits=limits) as pool:
        await warm_up(pool, data)
        return await flood(chosen, pool)


def describe(record: dict[str, Any]) -> str:
    machine = record["hardware"]
    return (
        f"`bench/sandbox/flood.py`: {record['programs']:,} programs, {record['hostile']} of them hostile "
        f"({record['hostile_kinds']} kinds, fork and memory bombs among them), {machine['cores']} cores, load "
        f"{machine['load_before'][0]:g} before: {record['programs_per_second']:g} programs/s, "
        f"{sum(count for _, count in record['wrong_verdicts'])} wrong verdicts, memory of all processes "
        f"{', '.join(f'{one:g}' for one in record['memory_mb_by_quarter'])} MiB (medians of the four quarters), "
        f"{record['after']['processes'] - record['before']['processes']} processes and "
        f"{record['after']['descriptors'] - record['before']['descriptors']} descriptors left."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--programs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--wall", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=_RESULTS)
    options = parser.parse_args()
    before = hardware()
    chosen = shots(options.data, options.programs)
    limits = replace(Limits(), wall_seconds=options.wall)
    first = sample(time.monotonic(), 0)
    wrong, samples, seconds = asyncio.run(measure(options.data, chosen, options.workers, limits))
    last = settled(first, len(chosen))
    quarter = max(1, len(samples) // 4)
    quarters = [statistics.median(s.memory for s in samples[at * quarter :][:quarter]) for at in range(4)]
    record = {
        "hardware": before,
        "isolation": str(capabilities()),
        "programs": len(chosen),
        "hostile": sum(shot.name != "honest" for shot in chosen),
        "hostile_kinds": len({shot.name for shot in chosen} - {"honest"}),
        "seconds": round(seconds, 1),
        "programs_per_second": round(len(chosen) / seconds, 1),
        "wrong_verdicts": Counter(wrong).most_common(50),
        "memory_mb_by_quarter": quarters,
        "zombies_most": max(s.zombies for s in samples),
        "before": asdict(first),
        "after": asdict(last),
        "samples": [asdict(s) for s in samples],
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if options.out == _RESULTS:
        fill_block("flood", describe(record))
    print(json.dumps({key: value for key, value in record.items() if key != "samples"}, indent=1))
    grew = quarters[3] > 1.05 * quarters[0] + 4
    left = last.processes > first.processes or last.descriptors > first.descriptors + 2 or last.zombies > first.zombies
    if wrong or grew or left:
        raise SystemExit(f"{len(wrong)} wrong verdicts; memory grew: {grew}; something left behind: {left}")


if __name__ == "__main__":
    main()
