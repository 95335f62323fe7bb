"""Run directories: atomic writes, checksums, taking a run up again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlreason.errors import UsageError
from rlreason.run import atomic, manifest
from rlreason.run.directory import RunDirectory, now
from rlreason.run.manifest import Manifest, StageEntry


def record() -> Manifest:
    entry = manifest.fresh("rlreason run x", seed=3, created=now(), gpus=[])
    entry.stages = [StageEntry(name="cold", kind="sft"), StageEntry(name="rl", kind="grpo")]
    return entry


def finish(run: RunDirectory, name: str, text: str = "weights") -> None:
    entry, _ = run.begin(name, [])
    folder = run.stage_folder(name) / "checkpoint"
    entry.sha256 = atomic.write_folder(folder, lambda path: (path / "model").write_text(text) and None)
    entry.status = "done"
    run.save()


def test_layout_and_round_trip(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", 'name = "x"\n', record())
    assert run.stage_folder("rl").name == "02-rl"
    finish(run, "cold")
    run.append("cold", "metrics.jsonl", {"step": 0, "loss": 1.5})
    again = RunDirectory.resume(tmp_path / "run")
    assert again.manifest.stage("cold").status == "done"
    assert again.checkpoint("cold").joinpath("model").read_text() == "weights"
    assert json.loads((again.stage_folder("cold") / "metrics.jsonl").read_text()) == {"step": 0, "loss": 1.5}


def test_a_used_folder_and_one_that_is_none_are_refused(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", "seed = 1\n", record())
    with pytest.raises(UsageError, match="--resume"):
        RunDirectory.create(tmp_path / "run", "seed = 1\n", record())
    with pytest.raises(UsageError, match="no run directory"):
        RunDirectory.resume(tmp_path / "other")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file: --out names a folder"):
        RunDirectory.create(tmp_path / "file", "", record())


def test_a_changed_checkpoint_is_noticed(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "", record())
    finish(run, "cold")
    (run.checkpoint("cold") / "model").write_text("tampered")
    with pytest.raises(UsageError, match="checksum differs"):
        run.checkpoint("cold")


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", "", record())
    (tmp_path / "run" / "manifest.json").write_text('{"half')
    with pytest.raises(UsageError, match=r"manifest\.json is damaged"):
        RunDirectory.resume(tmp_path / "run")


def test_a_failed_fill_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    before = atomic.write_folder(folder, lambda path: (path / "a").write_text("1") and None)

    def fail(path: Path) -> None:
        (path / "a").write_text("2")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        atomic.write_folder(folder, fail)
    assert atomic.folder_sha256(folder) == before


def test_checksum_sees_names_sizes_and_content(tmp_path: Path) -> None:
    sums = set()
    for name, text in (("a", "xy"), ("b", "xy"), ("a", "xz"), ("a", "xyz")):
        folder = tmp_path / f"{name}{text}"
        sums.add(
            atomic.write_folder(folder, lambda path, name=name, text=text: (path / name).write_text(text) and None)
        )
    assert len(sums) == 4
