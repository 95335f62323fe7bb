"""States inside a stage: what is saved together goes on together, whatever was damaged, torn or killed."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlreason.errors import UsageError
from rlreason.run import atomic, manifest
from rlreason.run.directory import RunDirectory, now
from rlreason.run.manifest import StageEntry

ROOT = Path(__file__).parents[2]


def new_run(root: Path) -> RunDirectory:
    record = manifest.fresh("rlreason run x", seed=3, created=now(), gpus=[])
    record.stages = [
        StageEntry(name="cold", kind="sft"),
        StageEntry(name="rl", kind="grpo"),
        StageEntry(name="final", kind="eval"),
        StageEntry(name="other", kind="sft"),
    ]
    return RunDirectory.create(root, "", record)


def save(run: RunDirectory, step: int, text: str = "weights", name: str = "rl") -> None:
    def fill(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_text(f"{text} {step}")

    run.save_state(name, step, {"seen": step * 2, "best": float("-inf")}, fill)


def steps(run: RunDirectory, first: int, last: int, name: str = "rl") -> None:
    for step in range(first, last):
        run.append(name, "metrics.jsonl", {"step": step})


def lines(run: RunDirectory, file: str = "metrics.jsonl", name: str = "rl") -> list[str]:
    return (run.stage_folder(name) / file).read_text().splitlines()


def states(run: RunDirectory, name: str = "rl") -> list[str]:
    return sorted(path.name for path in (run.stage_folder(name) / "state").iterdir())


def test_a_stage_goes_on_from_its_newest_state_and_its_files_from_there(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    entry, none = run.begin("rl", ["cold"])
    assert none is None
    steps(run, 0, 50)
    entry.seconds, entry.sampled_tokens, entry.trained_tokens = 12.5, 900, 700
    save(run, 50)
    steps(run, 50, 63)
    run.append("rl", "rollouts.jsonl", {"step": 60})
    entry.seconds, entry.sampled_tokens = 99.0, 5000
    again = RunDirectory.resume(tmp_path / "run")
    entry, found = again.begin("rl", ["cold"])
    assert found is not None
    assert (found.step, found.progress) == (50, {"seen": 100, "best": float("-inf")})
    assert (found.folder / "deep" / "weights").read_text() == "weights 50"
    assert lines(again) == [f'{{"step": {step}}}' for step in range(50)]
    # Of no state yet: emptied, not removed.
    assert (again.stage_folder("rl") / "rollouts.jsonl").stat().st_size == 0
    assert (entry.status, entry.resumed) == ("running", 1)
    assert (entry.seconds, entry.sampled_tokens, entry.trained_tokens) == (12.5, 900, 700)
    assert again.notes == []


def test_without_a_state_a_stage_begins_anew_with_empty_files(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin("rl", ["cold"])
    steps(run, 0, 5)
    again = RunDirectory.resume(tmp_path / "run")
    entry, found = again.begin("rl", ["cold"])
    assert found is None
    assert lines(again) == []
    assert (entry.seconds, entry.resumed) == (0.0, 1)


def test_two_states_are_kept_and_one_when_the_stage_is_done(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin("rl", [])
    for step in (50, 100, 150):
        save(run, step)
    assert states(run) == ["step-00000100", "step-00000150"]
    run.finish("rl")
    assert states(run) == ["step-00000150"]
    assert run.manifest.stage("rl").status == "done"


def test_the_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin("rl", [])
    save(run, 50)
    folder = run.stage_folder("rl") / "state" / "step-00000050"
    check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=folder, check=False).returncode == 0


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def remove(path: Path) -> None:
    path.unlink()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, remove, flip])
@pytest.mark.parametrize("file", ["deep/weights", "progress.json", "SHA256SUMS"])
def test_a_damaged_state_gives_way_to_the_one_before(tmp_path: Path, damage: object, file: str) -> None:
    assert callable(damage)
    run = new_run(tmp_path / "run")
    run.begin("rl", [])
    for step in (50, 100):
        steps(run, step - 50, step)
        save(run, step)
    damage(run.stage_folder("rl") / "state" / "step-00000100" / file)
    again = RunDirectory.resume(tmp_path / "run")
    told: list[str] = []
    again.tell = told.append
    found = again.begin("rl", [])[1]
    assert found is not None
    assert found.step == 50
    assert len(lines(again)) == 50
    assert told == [*again.notes, "rl: going on from its state of step 50"]
    assert "going on from step-00000050" in told[0]
    assert "step-00000100" in told[0]
    # The damaged one no longer counts as a state, so the next save keeps two good ones.
    save(again, 90)
    assert states(again) == ["step-00000050", "step-00000090", "step-00000100.damaged"]


def test_no_state_that_verifies_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin("rl", [])
    for step in (50, 100):
        save(run, step)
        truncate(run.stage_folder("rl") / "state" / f"step-{step:08d}" / "deep" / "weights")
    steps(run, 0, 100)
    again = RunDirectory.resume(tmp_path / "run")
    expected = r"02-rl/state .*step-00000100: deep/weights.*step-00000050: deep/weights.*begin the stage anew"
    with pytest.raises(UsageError, match=expected):
        again.begin("rl", [])
    assert len(lines(again)) == 100


def test_a_torn_last_line_is_cut(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin("rl", [])
    steps(run, 0, 3)
    path = run.stage_folder("rl") / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    # As a save under way in another thread may see it.
    save(run, 4)
    again = RunDirectory.resume(tmp_path / "run")
    again.begin("rl", [])
    assert lines(again) == ['{"step": 0}', '{"step": 1}', '{"step": 2}']
    again.append("rl", "metrics.jsonl", {"step": 3})
    assert lines(again)[3] == '{"step": 3}'


def test_a_file_that_lost_its_end_is_told(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin("rl", [])
    steps(run, 0, 10)
    save(run, 10)
    (run.stage_folder("rl") / "metrics.jsonl").write_text('{"step": 0}\n')
    again = RunDirectory.resume(tmp_path / "run")
    assert again.begin("rl", [])[1] is not None
    assert re.search(r"metrics\.jsonl has lost 108 bytes", again.notes[0])
    assert lines(again) == ['{"step": 0}']


def test_saving_a_step_twice_replaces_it_where_something_changed(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin("rl", [])
    save(run, 50, "first")
    # The same state: a signal came just after it was saved. Nothing is written.
    save(run, 50, "same")
    weights = run.stage_folder("rl") / "state" / "step-00000050" / "deep" / "weights"
    assert weights.read_text() == "first 50"
    steps(run, 50, 51)
    save(run, 50, "second")
    assert weights.read_text() == "second 50"
    assert states(run) == ["step-00000050"]


def test_a_state_put_aside_by_a_killed_replacement_comes_back(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin("rl", [])
    save(run, 50)
    folder = run.stage_folder("rl") / "state"
    (folder / "step-00000050").rename(folder / ".step-00000050.old")
    (folder / ".step-00000060.tmp").mkdir()
    found = RunDirectory.resume(tmp_path / "run").begin("rl", [])[1]
    assert found is not None
    assert found.step == 50
    assert states(run) == ["step-00000050"]


def test_more_steps_for_a_stage_that_is_done(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    for name, parents in (("cold", ["policy"]), ("rl", ["cold"]), ("final", ["rl", "cold"]), ("other", ["student"])):
        run.begin(name, parents)
        steps(run, 0, 5, name)
        save(run, 5, name=name)
        run.finish(name)
    result = tmp_path / "run" / "eval" / "final-rl.json"
    result.write_text("{}")
    again = RunDirectory.resume(tmp_path / "run")
    assert again.extend("cold") == ["rl", "final"]
    assert [entry.status for entry in again.manifest.stages] == ["pending", "pending", "pending", "done"]
    assert not result.exists()
    assert not again.stage_folder("rl").exists()
    entry, found = again.begin("cold", ["policy"])
    assert found is not None
    assert (found.step, len(lines(again, name="cold")), entry.resumed) == (5, 5, 1)
    assert again.begin("rl", ["cold"])[1] is None
    assert again.extend("rl") == []


def test_more_steps_need_a_state(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin("cold", [])
    run.finish("cold")
    with pytest.raises(UsageError, match="'cold' is done and has no state"):
        run.extend("cold")


def write_label(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def test_step_checkpoints_are_pruned_and_others_are_not(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin("rl", [])
    run.save_checkpoint("rl", "other", write_label)
    for step in (50, 100, 150):
        run.save_checkpoint("rl", f"step-{step:06d}", write_label, keep=2)
    run.save_checkpoint("rl", "other", write_label)
    folder = run.stage_folder("rl") / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["other", "step-000100", "step-000150"]


def test_checkpoints_put_aside_by_a_killed_replacement_come_back(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin("rl", [])
    label = run.save_checkpoint("rl", "other", write_label)
    label.rename(label.with_name(".other.old"))
    RunDirectory.resume(tmp_path / "run")
    assert (label / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_keeps_the_last_good_state_and_says_so(tmp_path: Path, error: Exception) -> None:
    run = new_run(tmp_path / "run")
    run.begin("rl", [])
    save(run, 50)

    def fill(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise error

    expected = r"file system / for the state of step 100: .* free, about .* needed; the state of step 50 is kept: .*"
    with pytest.raises(atomic.DiskFull, match=expected.replace("/", ".*")) as caught:
        run.save_state("rl", 100, {}, fill)
    assert f"`rlreason resume {run.root}`" in str(caught.value)
    assert states(run) == ["step-00000050"]
    error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        run.save_state("rl", 100, {}, fill)
    assert states(run) == ["step-00000050"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    run = new_run(small_disk / "run")
    run.begin("rl", [])

    def fill(folder: Path) -> None:
        (folder / "weights").write_bytes(bytes(400_000))

    run.save_state("rl", 50, {}, fill)
    steps(run, 50, 60)
    run.save_state("rl", 100, {}, fill)
    with pytest.raises(atomic.DiskFull, match=rf"no space left on the file system {small_disk} .* step 100 is kept"):
        run.save_state("rl", 150, {}, fill)
    assert states(run) == ["step-00000050", "step-00000100"]
    with pytest.raises(atomic.DiskFull, match=r"to write metrics\.jsonl"):
        run.append("rl", "metrics.jsonl", {"filler": "x" * 1_000_000})
    again = RunDirectory.resume(small_disk / "run")
    found = again.begin("rl", [])[1]
    assert found is not None
    assert found.step == 100
    assert len(lines(again)) == 10


SAVER = """
import sys
from pathlib import Path
from rlreason.run.directory import RunDirectory

run = RunDirectory.resume(Path(sys.argv[1]))
entry, found = run.begin("rl", [])
step = found.step if found else 0

def fill(folder):
    for part in range(20):
        (folder / f"part{part}").write_text(f"{step} " * 500)
        print("x", flush=True)

while True:
    run.append("rl", "metrics.jsonl", {"step": step})
    step += 1
    run.save_state("rl", step, {"step": step}, fill)
    print("saved", flush=True)
"""


def test_kill_in_the_middle_of_a_save_leaves_a_state_that_verifies(tmp_path: Path) -> None:
    new_run(tmp_path / "run").begin("rl", [])
    last = 0
    # After so many lines it is killed: in the first save, between saves, in the middle of later ones.
    for count in (5, 21, 30, 45, 50, 61, 64, 100):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path / "run")],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        saved = 0
        for _ in range(count):
            saved += process.stdout.readline() == "saved\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        run = RunDirectory.resume(tmp_path / "run")
        found = run.begin("rl", [])[1]
        assert run.notes == []
        step = found.step if found else 0
        assert step >= last + saved
        assert lines(run) == [f'{{"step": {number}}}' for number in range(step)]
        assert found is None or found.progress == {"step": step}
        last = step
    assert last >= 8
