"""rollouts.jsonl: which completions are kept, compressed or not, under its size, and cut back where a run goes on."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from rlreason.config import LoggingConfig, RolloutLog
from rlreason.run import manifest
from rlreason.run.buffered import BufferedRows
from rlreason.run.directory import RunDirectory, now
from rlreason.run.manifest import StageEntry
from rlreason.stages.context import Context
from rlreason.stages.rollout_log import log_groups
from rlreason.types import Completion, Group, Problem, RewardResult, Verdict


def directory(tmp_path: Path) -> RunDirectory:
    record = manifest.fresh("rlreason run x", seed=0, created=now(), gpus=[])
    record.stages = [StageEntry(name="rl", kind="grpo")]
    run = RunDirectory.create(tmp_path / "run", "", record)
    run.begin("rl", [])
    return run


def context(run: RunDirectory, **rollouts: Any) -> Context:
    recipe = SimpleNamespace(logging=LoggingConfig(rollouts=RolloutLog(**rollouts)))
    return cast(Context, SimpleNamespace(run=run, recipe=recipe))


def group(name: str, *verdicts: Verdict, text: str = "so 8") -> Group:
    one = Completion(
        prompt_ids=np.array([1, 2]), token_ids=np.array([3]), sampler_logprobs=None, text=text, finish_reason="stop"
    )
    return Group(
        group_id=name,
        problem=Problem(id=name, prompt="3+5", verifier="math", reference="8"),
        completions_G=(one,) * len(verdicts),
        rewards_G=tuple(RewardResult(score=None, verdict=verdict) for verdict in verdicts),
    )


def rows(run: RunDirectory, name: str = "rollouts.jsonl") -> list[dict[str, Any]]:
    path = run.stage_folder("rl") / name
    data = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    return [json.loads(line) for line in data.decode().splitlines()]


def test_failures_are_kept_beside_the_first_groups(tmp_path: Path) -> None:
    run = directory(tmp_path)
    broken, late, wrong = Verdict.BROKEN, Verdict.TIMED_OUT, Verdict.WRONG
    groups = [group("a", wrong, broken), group("b", wrong, late), group("c", broken, broken), group("d", wrong)]
    log_groups(context(run, groups=1, failures=2), "rl", 0, groups, decode=lambda ids: f"<{ids}>")
    found = [(row["group_id"], row["sample"], row["verdict"], row["logged_for"]) for row in rows(run)]
    assert found == [
        ("a", 0, "wrong", "group"),
        ("a", 1, "broken", "group"),
        ("b", 1, "timed_out", "failure"),
        ("c", 0, "broken", "failure"),
    ]
    assert [row["rendered_prompt"] for row in rows(run)] == ["<[1, 2]>", None, "<[1, 2]>", "<[1, 2]>"]


def test_a_stage_says_how_many_groups(tmp_path: Path) -> None:
    run = directory(tmp_path)
    groups = [group(name, Verdict.WRONG) for name in "abc"]
    log_groups(context(run, groups=1), "rl", 0, groups, keep=2)
    log_groups(context(run, groups=1, failures=0), "rl", 1, groups)
    assert [(row["step"], row["group_id"]) for row in rows(run)] == [(0, "a"), (0, "b"), (1, "a")]


def test_a_file_stays_under_its_size(tmp_path: Path) -> None:
    run = directory(tmp_path)
    limited = context(run, max_mib=0.1)
    for step in range(600):
        log_groups(limited, "rl", step, [group("a", Verdict.WRONG, text="x" * 700)])
    size = (run.stage_folder("rl") / "rollouts.jsonl").stat().st_size
    steps = [row["step"] for row in rows(run)]
    row_bytes = size / len(steps)
    assert size <= 0.1 * 2**20 + row_bytes
    # Every step up to half of the size; the run's end is still there.
    every = round(0.1 * 2**20 / 2 / row_bytes)
    assert steps[: every - 1] == list(range(every - 1))
    assert steps[-1] > 300


def test_compressed_rows_are_read_by_any_gzip_and_cut_back_exactly(tmp_path: Path) -> None:
    run = directory(tmp_path)
    compressed = context(run, compress=True)
    for step in range(3):
        log_groups(compressed, "rl", step, [group("a", Verdict.WRONG)])
    run.save_state("rl", 3, {})
    path = run.stage_folder("rl") / "rollouts.jsonl.gz"
    saved = path.read_bytes()
    log_groups(compressed, "rl", 3, [group("a", Verdict.WRONG)])
    path.write_bytes(path.read_bytes() + b"\x1f\x8b torn")
    again = RunDirectory.resume(run.root)
    again.begin("rl", [])
    assert path.read_bytes() == saved
    assert [row["step"] for row in rows(again, "rollouts.jsonl.gz")] == [0, 1, 2]


@pytest.mark.parametrize("lost", [1, 60])
def test_a_compressed_file_that_lost_bytes_keeps_whole_members(tmp_path: Path, lost: int) -> None:
    run = directory(tmp_path)
    for step in range(3):
        log_groups(context(run, compress=True), "rl", step, [group("a", Verdict.WRONG)])
    run.save_state("rl", 3, {})
    path = run.stage_folder("rl") / "rollouts.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-lost])
    again = RunDirectory.resume(run.root)
    again.begin("rl", [])
    assert [row["step"] for row in rows(again, "rollouts.jsonl.gz")] == [0, 1]
    assert "has lost" in again.notes[0]


def test_a_lone_surrogate_ends_no_run(tmp_path: Path) -> None:
    run = directory(tmp_path)
    log_groups(context(run), "rl", 0, [group("a", Verdict.WRONG, text="\ud800")])
    assert rows(run)[0]["response"] == "\ud800"


def test_rows_that_come_often_are_written_together_and_before_a_state(tmp_path: Path) -> None:
    run = directory(tmp_path)
    buffered = BufferedRows(run, "rl", "schedule.jsonl")
    for op in range(5):
        buffered.add({"op": op})
    assert not (run.stage_folder("rl") / "schedule.jsonl").exists()
    buffered.flush()
    assert [row["op"] for row in rows(run, "schedule.jsonl")] == [0, 1, 2, 3, 4]
    off = BufferedRows(run, "rl", "other.jsonl", on=False)
    off.add({"op": 0})
    off.flush()
    assert not (run.stage_folder("rl") / "other.jsonl").exists()
