"""Trackers, health rules and data sources of the user's own: by file, by module, and offered by a real package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rlreason import extensions
from rlreason.check import check
from rlreason.config import HealthConfig, load
from rlreason.data.source import SetSpec, SourceSpec, open_set, open_source
from rlreason.diagnose.health import StageHealth
from rlreason.diagnose.rules import History
from rlreason.errors import UsageError
from rlreason.evaluation import EvalRequest, evaluate_model
from rlreason.job import JobOptions, run_job
from rlreason.run.manifest import read as read_manifest
from rlreason.run.trackers import make_trackers
from rlreason.types import StepReport

CODE = """
from rlreason.streams import Stream
from rlreason.tasks.task import Draft, Options, Task


def rows(*, top: int = 20):
    for i in range(top):
        yield {"prompt": f"{i}+1=", "answer": str(i + 1), "solution": "one more"}


def held():
    return [{"prompt": f"{i}+2=", "answer": str(i + 2)} for i in range(10)]


class Doubling:
    name, verifier, alphabet, options = "doubling", "math", "0123456789*=", Options()

    def identity(self, split):
        return {}

    def draw(self, stream, train_index):
        a = stream.below(1000)
        return Draft(content=f"{a}", prompt=f"{a}*2=", reference=f"{2 * a}", thought="", answer=f"{2 * a}")


def doubling(*, seed: int):
    return Task(Doubling(), seed)


def short(history, limits):
    length = history.mean("length/mean", limits.window)
    return f"completions have {length:.0f} tokens on average" if length < 100 else None


def fails(history, limits):
    return 1 / 0


class Lines:
    def start(self, run):
        self.file = (run.root / "lines.txt").open("a")

    def log(self, line):
        print(line.stage, line.step, sorted(line.scalars)[0], file=self.file, flush=True)

    def summarize(self, at, values):
        print("summary", values.get("status"), file=self.file, flush=True)

    def finish(self, failed):
        self.file.close()


class Unmade:
    def __init__(self):
        raise OSError("no key")


def broken():
    yield {"prompt": "1+1=", "answer": "2"}
    raise ConnectionError("the server is gone")
"""
RECIPE = """
name = "tiny"
[policy]
model_type = "qwen3"
tokenizer = { kind = "bpe", vocab_size = 300 }
model = { hidden_size = 32, num_hidden_layers = 1, num_attention_heads = 2, num_key_value_heads = 1, head_dim = 16, \
intermediate_size = 32 }
[data]
train = "own.py:rows"
heldout = "own.py:held"
[health]
rules = ["own.py:short", "own.py:fails"]
[logging]
trackers = ["own.py:Lines", "own.py:Unmade"]
[[stage]]
kind = "sft"
name = "cold"
model = "policy"
steps = 2
batch_size = 4
[[stage]]
kind = "grpo"
name = "rl"
steps = 2
problems_per_step = 2
samples_per_problem = 2
max_tokens = 8
[reward]
"own.py:vowels" = 1.0
"""
PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "rlreason-little"
version = "1.0"
[project.entry-points."rlreason.trackers"]
lines = "little_plugin:Lines"
lost = "little_plugin_gone:Lost"
[project.entry-points."rlreason.data"]
little_rows = "little_plugin:rows"
little_task = "little_plugin:doubling"
[project.entry-points."rlreason.health"]
short = "little_plugin:short"
[tool.setuptools]
py-modules = ["little_plugin"]
"""


def write(folder: Path, recipe: str = RECIPE) -> Path:
    vowels = "\ndef vowels(problem, completion):\n    return float(len(completion.text))\n"
    (folder / "own.py").write_text(CODE + vowels)
    (folder / "recipe.toml").write_text(recipe)
    return folder / "recipe.toml"


def run(path: Path, out: Path, *, resume: bool = False, overrides: tuple[str, ...] = ()) -> str:
    console = Console(record=True, width=300, file=(out.parent / "said.txt").open("a"))
    recipe = load(out / "recipe.toml" if resume else path, overrides)
    run_job(recipe, path, JobOptions(folder=out, command="rlreason run", resume=resume), console)
    return console.export_text()


def test_a_real_run_with_a_tracker_a_rule_and_a_data_source_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file beside the recipe is found from another folder and compared when the run goes on; a tracker and a rule
    that fail cost a warning. Once the file is gone the run is measured with the copy that it has."""
    path, out = write(tmp_path), tmp_path / "out"
    said = run(path, out)
    lines = (out / "lines.txt").read_text().splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [["cold", "0"], ["cold", "1"], ["rl", "0"], ["rl", "1"]]
    assert lines[-1] == "summary done"
    assert "own.py:Unmade gets no more of this run, which goes on without it: OSError: no key" in said
    manifest = read_manifest(out / "manifest.json")
    warned = {(one.stage, one.rule): one.text for one in manifest.warnings}
    assert "completions have 8 tokens on average" in warned["rl", "own.py:short"]
    assert "ZeroDivisionError" in warned["rl", "own.py:fails"]
    assert {Path(one.path).name for one in manifest.inputs} == {"own.py"}
    problems = {json.loads(line)["prompt"] for line in (out / "stages" / "02-rl" / "rollouts.jsonl").open()}
    assert all(prompt.endswith("+1=") for prompt in problems)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (tmp_path / "own.py").write_text((tmp_path / "own.py").read_text() + "\n# changed\n")
    with pytest.raises(UsageError, match=r"own.py changed since .* was begun"):
        run(path, out, resume=True)
    (tmp_path / "own.py").write_text((tmp_path / "own.py").read_text().removesuffix("\n# changed\n"))
    run(path, out, resume=True, overrides=("stage.rl.steps=3",))
    assert len((out / "stages" / "02-rl" / "metrics.jsonl").read_text().splitlines()) == 3
    (tmp_path / "own.py").unlink()
    with pytest.raises(UsageError, match=r"plug-in file .*own.py' does not exist"):
        check(load(out / "recipe.toml"), out)
    evaluate_model(EvalRequest(model=str(out), problems=2, max_tokens=4), Console(quiet=True))


def test_rows_and_tasks_from_functions(tmp_path: Path) -> None:
    write(tmp_path)
    own = tmp_path / "own.py"
    source = open_source(SourceSpec(train=f"{own}:rows", heldout=f"{own}:held"))
    assert (source.train_size, len(source.heldout(99)), source.demonstration_count) == (20, 10, 20)
    assert {problem.id for problem in source.heldout(99)} == {f"own-{i}" for i in range(1, 11)}
    assert open_source(SourceSpec(train=f"{own}:rows", options={"top": 3})).train_size == 3
    task = open_source(SourceSpec(train=f"{own}:doubling", seed=7))
    assert task.train_size is None
    assert task.train(0, 4) == open_source(SourceSpec(train=f"{own}:doubling", seed=7)).train(0, 4)
    assert task.train(0, 4) != open_source(SourceSpec(train=f"{own}:doubling", seed=8)).train(0, 4)
    assert {one.prompt for one in task.train(0, 50)}.isdisjoint(one.prompt for one in task.heldout(20))
    split = open_set(SetSpec(where=f"{own}:rows", setting="data.a.path", split=0.3))
    assert split.heldout is not None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("own.py:row", {}, "own.py has no 'row'; it has: .*rows"),
        ("gone.py:rows", {}, "data.train: plug-in file .*gone.py' does not exist"),
        ("no.such.module:rows", {}, "did not import: ModuleNotFoundError: No module named 'no'"),
        ("own.py:rows", {"topp": 3}, "own.py:rows failed: TypeError: .*unexpected keyword argument 'topp'"),
        ("own.py:broken", {}, r"own.py:broken failed: ConnectionError: the server is gone \(own.py:\d+ in broken\)"),
        ("own.py:short", {"history": 1, "limits": 2}, "own.py:short failed: AttributeError"),
        ("rowz", {}, r"neither a task \(arithmetic, .*nor a function of yours \(path/file.py:name\)"),
    ],
)
def test_what_a_function_of_rows_can_do_wrong(
    tmp_path: Path, name: str, options: dict[str, object], message: str
) -> None:
    write(tmp_path)
    place = str(tmp_path / name) if ".py:" in name else name
    with pytest.raises(UsageError, match=message):
        open_source(SourceSpec(train=place, options=options))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('logging.trackers=["wandbb"]', "is none of tensorboard, wandb, trackio.* did you mean 'wandb'"),
        ('logging.trackers=["t.py:Lines"]', "logging.trackers: plug-in file 't.py' does not exist"),
        ('logging.trackers=["own.py:Linse"]', "logging.trackers: plug-in .*has no 'Linse'"),
        ('health.rules=["short"]', "health.rules: 'short' is offered by no installed package"),
        ('health.rules=["own.py:shrt"]', "health.rules: plug-in .*has no 'shrt'"),
        ('data.train="own.py:rwos"', "data.train: plug-in .*has no 'rwos'"),
        ('data.train="gone.py:rows"', "data.train: plug-in file 'gone.py' does not exist"),
    ],
)
def test_mistyped_names_are_recipe_errors(tmp_path: Path, override: str, message: str) -> None:
    path = write(tmp_path)
    with pytest.raises(UsageError, match=message):
        check(load(path, (override,)), tmp_path)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("rows.py:rows", True),
        ("a/b/rows.py:rows", True),
        ("pkg.mod:rows", True),
        ("owner/name:config", False),
        ("owner/name", False),
        ("owner/name:config:split", False),
        ("sums.jsonl", False),
        ("C:", False),
        ("trl:pkg.mod:fn", False),
    ],
)
def test_what_counts_as_code(name: str, code: bool) -> None:
    assert extensions.is_code(name) is code


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where pip has installed a package with entry points."""
    source, site = tmp_path_factory.mktemp("little"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "little_plugin.py").write_text(CODE)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(site), str(source)], check=True, timeout=120)
    return site


def test_an_installed_package_offers_all_three(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="neither a task"):
        open_source(SourceSpec(train="little_rows"))
    monkeypatch.syspath_prepend(str(package))
    assert "lines" in extensions.offered(extensions.TRACKERS)
    assert open_source(SourceSpec(train="little_rows", options={"top": 5})).train_size == 5
    assert open_source(SourceSpec(train="little_task")).train_size is None
    (tracker,) = make_trackers(["lines"]).values()
    assert tracker is not None
    watch = StageHealth(stage="s", limits=HealthConfig(rules=("short",)), history=History(kind="grpo"))
    report = StepReport(stage="s", kind="grpo", step=0, policy_version=0, scalars={"length/mean": 9.0})
    assert [one.rule for one in watch.step(report)] == ["short"]
    assert watch.step(report) == []
    recipe = load(write(tmp_path), ('logging.trackers=["lines"]', 'health.rules=["short"]', "data.train=little_rows"))
    assert check(recipe, tmp_path).recipe.data.train == "little_rows"
    with pytest.raises(UsageError, match=r"'linse' is none of .*lines.*did you mean 'lines'"):
        load(tmp_path / "recipe.toml", ('logging.trackers=["linse"]',))
    with pytest.raises(UsageError, match=r"'lost' is little_plugin_gone:Lost of an installed package"):
        check(load(tmp_path / "recipe.toml", ('logging.trackers=["lost"]',)), tmp_path)
