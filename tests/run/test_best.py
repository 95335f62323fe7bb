"""The best checkpoint of a stage on disk: it is the one of the state that a run goes on from, and it has a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlreason.errors import UsageError
from rlreason.run import manifest
from rlreason.run.directory import RunDirectory, now
from rlreason.run.manifest import StageEntry


def new_run(root: Path) -> RunDirectory:
    record = manifest.fresh("rlreason run x", seed=3, created=now(), gpus=[])
    record.stages = [StageEntry(name="rl", kind="grpo")]
    return RunDirectory.create(root, "", record)


def save(run: RunDirectory, step: int) -> None:
    run.save_state("rl", step, {}, lambda folder: fill(folder, step))


def states(run: RunDirectory) -> list[str]:
    return sorted(path.name for path in (run.stage_folder("rl") / "state").iterdir())


def keep(run: RunDirectory, step: int, value: float) -> None:
    run.save_best("rl", step, "accuracy/heldout", value, lambda folder: fill(folder, step))


def fill(folder: Path, step: int) -> None:
    (folder / "weights").write_text(str(step))


def kept(run: RunDirectory) -> list[str]:
    return sorted(path.name for path in (run.stage_folder("rl") / "checkpoints").iterdir())


def test_the_best_is_that_of_the_state_that_is_gone_on_from(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin("rl", [])
    keep(run, 8, 0.5)
    save(run, 10)
    keep(run, 12, 0.7)
    assert run.manifest.stage("rl").best is not None
    assert (run.checkpoint("rl@best") / "weights").read_text() == "12"
    assert kept(run) == ["best-000008", "best-000012"]
    # Killed here: what step 12 was is not what the next session's step 12 will be.
    again = RunDirectory.resume(tmp_path / "run")
    again.begin("rl", [])
    best = again.manifest.stage("rl").best
    assert best is not None
    assert (best.step, best.value) == (8, 0.5)
    assert kept(again) == ["best-000008"]
    assert (again.checkpoint("rl@best") / "weights").read_text() == "8"


def test_what_was_surpassed_goes_and_what_a_kept_state_speaks_of_stays(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin("rl", [])
    for step in range(1, 7):
        keep(run, step, step / 10)
        if step in {2, 4}:
            save(run, step)
    assert kept(run) == ["best-000002", "best-000004", "best-000006"]
    save(run, 6)
    assert states(run) == ["step-00000004", "step-00000006"]
    assert kept(run) == ["best-000004", "best-000006"]
    run.finish("rl")
    assert kept(run) == ["best-000006"]
    assert RunDirectory.resume(tmp_path / "run").checkpoint("rl@best").name == "best-000006"


def test_a_damaged_newest_state_goes_back_to_its_own_best(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin("rl", [])
    for step in (10, 20):
        keep(run, step, step / 100)
        save(run, step)
    (run.stage_folder("rl") / "state" / "step-00000020" / "weights").write_text("torn")
    again = RunDirectory.resume(tmp_path / "run")
    again.begin("rl", [])
    assert (again.checkpoint("rl@best") / "weights").read_text() == "10"


def test_a_best_that_is_gone_or_changed_is_no_model(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin("rl", [])
    with pytest.raises(UsageError, match="'rl' has kept no best checkpoint: trainer"):
        run.checkpoint("rl@best")
    keep(run, 8, 0.5)
    save(run, 10)
    (run.checkpoint("rl@best") / "weights").write_text("other")
    with pytest.raises(UsageError, match="is gone or changed"):
        run.checkpoint("rl@best")
    for path in (run.stage_folder("rl") / "checkpoints" / "best-000008").iterdir():
        path.unlink()
    (run.stage_folder("rl") / "checkpoints" / "best-000008").rmdir()
    again = RunDirectory.resume(tmp_path / "run")
    again.begin("rl", [])
    assert again.manifest.stage("rl").best is None
    assert "its best checkpoint" in again.notes[0]


def test_a_step_that_is_kept_has_a_name(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin("rl", [])
    for step in (50, 100):
        run.save_checkpoint("rl", f"step-{step:06d}", lambda folder, step=step: fill(folder, step), keep=2)
    assert (run.checkpoint("rl@50") / "weights").read_text() == "50"
    with pytest.raises(UsageError, match=r"no checkpoint '60' \(rl@50, rl@100\); rl@best is its best"):
        run.checkpoint("rl@60")
