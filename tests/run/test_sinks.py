"""Trackers: what each of the three receives of a real run, and that one that fails costs a warning and nothing else."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console

from rlreason.config import load
from rlreason.job import JobOptions, run_job
from rlreason.run import manifest, sinks, trackers
from rlreason.run.directory import RunDirectory, now
from rlreason.run.manifest import StageEntry
from rlreason.run.sinks import MetricsLine, TrackedRun, Trackers
from rlreason.types import StepReport

RECIPE = """
name = "tiny"
[policy]
model_type = "qwen3"
dtype = "float32"
[policy.model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
max_position_embeddings = 128
[data]
train = "arithmetic"
heldout = "arithmetic"
[reward]
accuracy = 1.0
"judge.py:judge" = { weight = 0.5, api_key = { env = "SINKS_TEST_KEY" }, other_token = "sk-literal-0123456789" }
[sampler]
engine = "transformers"
[trainer]
save_every = 2
[[stage]]
kind = "sft"
name = "cold"
model = "policy"
steps = 3
batch_size = 8
[[stage]]
kind = "grpo"
name = "rl"
steps = 3
problems_per_step = 2
samples_per_problem = 3
max_tokens = 8
[[stage]]
kind = "eval"
name = "final"
models = ["rl"]
problems = 4
max_tokens = 8
"""
JUDGE = """
def judge(problem, completion, *, api_key, other_token):
    assert len(api_key) == 14
    if len(completion.response) % 4 == 0:
        raise ConnectionError(f"refused with key {api_key}")
    return len(completion.response) / 100
"""
LITERAL = "sk-literal-0123456789"


def write_recipe(folder: Path) -> Path:
    (folder / "judge.py").write_text(JUDGE)
    path = folder / "recipe.toml"
    path.write_text(RECIPE)
    return path


def run(path: Path, out: Path, *overrides: str, resume: bool = False) -> str:
    """Run the recipe; what was said."""
    console = Console(record=True, file=(out.parent / "said.txt").open("a"), width=300)
    options = JobOptions(folder=out, command=f"rlreason run --token={LITERAL}", resume=resume)
    run_job(load(out / "recipe.toml" if resume else path, overrides), path, options, console)
    return console.export_text()


def metrics(out: Path, stage: str) -> list[dict[str, float]]:
    path = next((out / "stages").glob(f"*-{stage}")) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def wandb_records(path: Path) -> Iterator[object]:
    """The records of a .wandb file: LevelDB's log format behind a header of 7 bytes, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or last part
            parsed = wandb_internal_pb2.Record()
            parsed.ParseFromString(record)
            yield parsed
            record = b""


def test_three_trackers_receive_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not all(find_spec(package) for package in ("tensorboard", "wandb", "trackio")):  # not imported: they read
        pytest.skip("needs the three trackers")  # their variables then
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("SINKS_TEST_KEY", "a-secret-value")
    out, files = tmp_path / "out", tmp_path / "files"
    names = 'logging.trackers=["tensorboard","wandb","trackio"]'
    said = run(write_recipe(tmp_path), out, names, f"logging.dir={files}")
    assert "no more of this run" not in said
    assert "other_token looks like a secret" in said
    _check_tensorboard(files / "out" / "tensorboard", out)
    _check_wandb(files / "wandb", out)
    _check_trackio(files / "trackio", out)
    # The one that is named is nowhere, its value in an exception included; the literal one is in recipe.toml alone.
    _check_nowhere("a-secret-value", [out, files])
    _check_nowhere(LITERAL, [out, files], but=out / "recipe.toml")
    assert "refused with key ***" in next(out.glob("stages/*-rl/rollouts.jsonl")).read_text()


def _check_nowhere(secret: str, folders: list[Path], but: Path | None = None) -> None:
    found = [p for folder in folders for p in folder.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]
    assert found == ([] if but is None else [but])


def _check_tensorboard(folder: Path, out: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "02-rl"))
    events.Reload()
    found = [(one.step, one.value) for one in events.Scalars("length/mean")]
    expected = [(row["step"], pytest.approx(row["length/mean"])) for row in metrics(out, "rl")]
    assert found == expected
    whole = EventAccumulator(str(folder))
    whole.Reload()
    accuracy = json.loads((out / "eval" / "final-rl.json").read_text())["accuracy"]["value"]
    assert whole.Scalars("eval/heldout/rl")[0].value == pytest.approx(accuracy)


def _check_wandb(folder: Path, out: Path) -> None:
    (path,) = folder.glob("offline-run-*/*.wandb")
    assert json.loads((out / "trackers.json").read_text())["wandb"] in path.name
    losses, config = [], {}
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "run":
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.WhichOneof("record_type") == "history":
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            losses += [row["cold/loss"]] if "cold/loss" in row else []
    assert losses == [pytest.approx(row["loss"]) for row in metrics(out, "cold")]
    judge = next(value for key, value in config["reward"].items() if key.endswith(":judge"))
    assert judge == {"weight": 0.5, "api_key": {"env": "SINKS_TEST_KEY"}, "other_token": "***"}


def _check_trackio(folder: Path, out: Path) -> None:
    (path,) = folder.glob("*.db")
    with sqlite3.connect(path) as store:
        rows = [(step, json.loads(text)) for step, text in store.execute("SELECT step, metrics FROM metrics")]
    found = [(step, row["rl/length/mean"]) for step, row in rows if "rl/length/mean" in row]
    # Steps count through the whole run: three of the cold start come before.
    assert found == [(3 + row["step"], pytest.approx(row["length/mean"])) for row in metrics(out, "rl")]


class Recorded:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[MetricsLine] = []
        self.values: dict[str, float | str] = {}
        self.finished: bool | None = None

    def start(self, run: TrackedRun) -> None:
        pass

    def log(self, line: MetricsLine) -> None:
        self.lines.append(line)

    def summarize(self, at: int, values: Mapping[str, float | str]) -> None:
        self.values |= values

    def finish(self, failed: bool) -> None:
        self.finished = failed


class Killed(Recorded):
    """One whose service is gone after the second line."""

    def log(self, line: MetricsLine) -> None:
        super().log(line)
        if len(self.lines) == 2:
            raise SystemExit("the service process died")  # not even an Exception


class Stuck(Recorded):
    """One that never comes back."""

    def log(self, line: MetricsLine) -> None:
        threading.Event().wait()


class Missing(Recorded):
    """One whose package is not installed."""

    def start(self, run: TrackedRun) -> None:
        raise ModuleNotFoundError("No module named 'missing'")


def test_failing_trackers_cost_one_warning_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "FLUSH_SECONDS", 0.2)
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 0.5)
    monkeypatch.setenv("SINKS_TEST_KEY", "a-secret-value")
    good, killed = Recorded(), Killed()
    made = {"good": good, "killed": killed, "stuck": Stuck(), "missing": Missing()}
    monkeypatch.setattr("rlreason.tracking.make_trackers", lambda names: made)
    out = tmp_path / "out"
    said = run(write_recipe(tmp_path), out)
    assert manifest.read(out / "manifest.json").stage("final").status == "done"
    for name, why in (("killed", "the service process died"), ("stuck", "did not finish"), ("missing", "No module")):
        (line,) = [line for line in said.splitlines() if line.startswith(f"warning: {name} gets")]
        assert why in line
    assert [line.at for line in good.lines] == [0, 1, 2, 3, 4, 5, 6]
    assert [line.stage for line in good.lines] == ["cold"] * 3 + ["rl"] * 3 + ["final"]
    assert good.values["status"] == "done"
    assert good.values["total/trained_tokens"] > 0
    assert good.finished is False
    assert len(killed.lines) == 2


def test_a_resumed_run_goes_on_in_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("SINKS_TEST_KEY", "a-secret-value")
    out = tmp_path / "out"
    path = write_recipe(tmp_path)
    run(path, out, 'logging.trackers=["tensorboard"]')
    first = trackers._kept_id(out, "wandb")
    run(path, out, "stage.cold.steps=5", resume=True)
    assert trackers._kept_id(out, "wandb") == first
    events = EventAccumulator(str(out / "tensorboard" / "01-cold"))
    events.Reload()
    assert [one.step for one in events.Scalars("loss")] == [0, 1, 2, 3, 4]


def test_a_full_queue_drops_lines_and_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "QUEUE", 5)
    record = manifest.fresh("rlreason run x", seed=0, created=now(), gpus=[])
    record.stages = [StageEntry(name="rl", kind="grpo")]
    directory = RunDirectory.create(tmp_path / "run", "", record)
    said: list[str] = []
    about = TrackedRun(project="p", name="n", root=directory.root, folder=None, entity=None, config={}, resumed=False)
    told = Trackers.start({"stuck": Stuck()}, about, said.append)
    for step in range(50):
        report = StepReport(stage="rl", kind="grpo", step=step, policy_version=step, scalars={})
        told.step(directory, report, {"loss": 1.0})
    assert len(said) == 1
    assert "has not taken 5 lines" in said[0]
    began = time.monotonic()
    told.close(directory, failed=False)
    assert time.monotonic() - began < sinks.CLOSE_SECONDS  # it gave up already and is not waited for


def test_tensorboard_forgets_the_steps_after_the_state_that_is_gone_on_from(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    about = TrackedRun(project="p", name="n", root=tmp_path, folder=None, entity=None, config={}, resumed=False)
    for first, last, value in ((0, 6, 1.0), (3, 5, 2.0)):  # killed after step 5, gone on with from step 3
        one = trackers.TensorBoard()
        one.start(about)
        for step in range(first, last):
            one.log(MetricsLine(stage="rl", folder="02-rl", step=step, at=step, scalars={"loss": value}))
        one.finish(failed=False)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "02-rl"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
