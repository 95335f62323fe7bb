"""The best checkpoint of a stage in whole runs, and evaluations that go on while a run trains ahead."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlreason.config import load
from rlreason.errors import UsageError
from rlreason.evaluation import EvalRequest, evaluate_model
from rlreason.job import JobOptions, run_job
from rlreason.run.interrupt import Interrupted
from rlreason.sampler.stream import RolloutStream
from rlreason.types import Group

HEAD = """
name = "best"
seed = 5
[policy]
model_type = "qwen3"
model = { hidden_size = 32, num_hidden_layers = 1, num_attention_heads = 2, num_key_value_heads = 1, head_dim = 16, \
intermediate_size = 32, max_position_embeddings = 128 }
[data]
train = "arithmetic"
options = { min_terms = 2, max_terms = 3, max_total = 9, negatives = false }
[cluster]
kind = "inline"
threads = 1
"""
#: A learning rate at which the accuracy goes up and down.
COLD = """
[[stage]]
kind = "sft"
name = "cold"
steps = STEPS
batch_size = 16
optimizer = { lr = 3e-2 }
eval_every = 4
eval_problems = 24
eval_max_tokens = 24
"""
AFTER = """
[[stage]]
kind = "sft"
name = "more"
model = "cold@best"
steps = 1
batch_size = 4
[[stage]]
kind = "eval"
name = "final"
models = ["cold", "cold@best"]
problems = 24
max_tokens = 24
"""
BEST = '[trainer]\nbest_metric = "accuracy/heldout"\nsave_every = 10\n'
REWARD = '[reward]\n"judge.py:judge" = 1.0\n'
AHEAD = """
[[stage]]
kind = "grpo"
name = "rl"
model = "policy"
steps = 4
problems_per_step = 2
samples_per_problem = 2
max_tokens = 8
eval_every = 1
eval_problems = 6
staleness = STALENESS
optimizer = { lr = 1e-2 }
"""


#: Tells completions apart, so that there is something to learn from them.
JUDGE = "def judge(problem, completion):\n    return sum(map(ord, completion.text)) % 7 / 7\n"


def run(folder: Path, text: str, name: str = "run", *, resume: bool = False) -> Path:
    recipe = folder / f"{name}.toml"
    recipe.write_text(text)
    (folder / "judge.py").write_text(JUDGE)
    options = JobOptions(folder=folder / name, command="", resume=resume)
    return run_job(load(recipe), recipe, options, Console(quiet=True)).parent


def metrics(folder: Path, stage: str) -> list[dict[str, Any]]:
    (path,) = (folder / "stages").glob(f"*-{stage}/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def best(folder: Path, stage: str) -> Mapping[str, Any]:
    manifest = json.loads((folder / "manifest.json").read_text())
    (entry,) = (one for one in manifest["stages"] if one["name"] == stage)
    found = entry["best"]
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("whole"), HEAD + BEST + COLD.replace("STEPS", "40") + AFTER)


def test_the_best_checkpoint_is_the_model_of_that_step(whole: Path, tmp_path: Path) -> None:
    """Measured anew it has the accuracy that its step had while training, which the last one has not."""
    accuracy = {row["step"] + 1: row["accuracy/heldout"] for row in metrics(whole, "cold") if "accuracy/heldout" in row}
    top = max(accuracy.values())
    found = best(whole, "cold")
    assert (found["step"], found["value"]) == (next(step for step, value in accuracy.items() if value == top), top)
    assert found["step"] < 40
    assert accuracy[40] < top
    for name, value in (("cold@best", top), ("cold", accuracy[40])):
        (report,) = evaluate_model(
            EvalRequest(model=f"{whole}:{name}", problems=24, max_tokens=24, out=tmp_path / name), Console(quiet=True)
        )
        assert report.accuracy.value == value
        row = json.loads((whole / "eval" / f"final-{name}.json").read_text())
        assert row["accuracy"]["value"] == value
    page = (whole / "report.html").read_text()
    assert "best checkpoint, cold@best" in page
    assert f"after {found['step']} steps" in page


def test_a_stage_begins_with_the_best_of_another(whole: Path, tmp_path: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["stages"][1]["parents"] == ["cold@best"]
    first = metrics(whole, "more")[0]["loss"]
    other = run(
        tmp_path, HEAD + BEST + COLD.replace("STEPS", "40") + AFTER.replace('"cold@best"\nsteps', '"cold"\nsteps')
    )
    assert metrics(other, "more")[0]["loss"] != first


def test_a_run_that_was_given_more_steps_has_the_best_of_the_whole(whole: Path, tmp_path: Path) -> None:
    head = HEAD + BEST
    run(tmp_path, head + COLD.replace("STEPS", "12"))
    again = run(tmp_path, head + COLD.replace("STEPS", "40"), resume=True)
    one, other = best(again, "cold"), best(whole, "cold")
    assert dict(one) == dict(other)
    assert sorted(path.name for path in (again / "stages/01-cold/checkpoints").iterdir()) == [f"best-{one['step']:06d}"]


def test_by_another_metric_the_best_is_looked_for_anew(tmp_path: Path) -> None:
    head = HEAD + BEST.replace("accuracy/heldout", "tokens")
    first = best(run(tmp_path, head + COLD.replace("STEPS", "4")), "cold")
    assert first["value"] > 1  # a number that no loss has
    again = run(tmp_path, head.replace('"tokens"', '"loss"') + COLD.replace("STEPS", "6"), resume=True)
    other = best(again, "cold")
    losses = [row["loss"] for row in metrics(again, "cold")][4:]
    assert (other["metric"], other["value"]) == ("loss", max(losses))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BEST + COLD.replace("eval_every = 4\n", ""), "is measured by the evaluations of a training stage"),
        (COLD + AFTER, "trainer.best_metric doesn't say by which metric"),
        (BEST + COLD + AFTER.replace('"cold@best"\nsteps', '"cold@last"\nsteps'), "model 'cold@last' is neither"),
    ],
)
def test_what_cannot_be_kept_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        run(tmp_path, HEAD + text.replace("STEPS", "4"))


def test_a_metric_that_no_step_has_is_said(tmp_path: Path) -> None:
    text = HEAD + BEST.replace("accuracy/heldout", "accuracy/held_out") + COLD.replace("STEPS", "4")
    recipe = tmp_path / "r.toml"
    recipe.write_text(text)
    console = Console(record=True, width=300, quiet=False, file=(tmp_path / "screen").open("w"))
    run_job(load(recipe), recipe, JobOptions(folder=tmp_path / "run", command=""), console)
    said = " ".join(console.export_text().split())
    assert "no step had the metric 'accuracy/held_out' (trainer.best_metric); did you mean 'accuracy/heldout'?" in said


class Watched:
    """Notes of each evaluation which step had been taken when somebody waited for it, and who drew it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.taken = -1
        #: (last step that was taken when it was asked for, the same when it was waited for, versions that drew it)
        self.seen: list[tuple[int, int, set[int]]] = []
        begin, take = RolloutStream.begin, RolloutStream.take

        def watched_begin(stream: RolloutStream, *asked: Any) -> Callable[[], list[Group]]:
            wait, before = begin(stream, *asked), self.taken

            def waited() -> list[Group]:
                after, groups = self.taken, wait()
                versions = {int(v) for g in groups for c in g.completions_G for v in c.policy_versions}
                self.seen.append((before, after, versions))
                return groups

            return waited

        def watched_take(stream: RolloutStream, step: int, *more: Any) -> list[Group]:
            groups = take(stream, step, *more)
            self.taken = step
            return groups

        patch.setattr(RolloutStream, "begin", watched_begin)
        patch.setattr(RolloutStream, "take", watched_take)


@pytest.mark.parametrize(("staleness", "ahead"), [(1, 1), (0, 0)])
def test_an_evaluation_waits_for_nobody_where_rollouts_run_ahead(
    staleness: int, ahead: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step after it is taken before anyone waits for it; without staleness it is not, so that a run repeats."""
    watched = Watched(monkeypatch)
    folder = run(tmp_path, HEAD + REWARD + BEST + AHEAD.replace("STALENESS", str(staleness)))
    assert watched.seen == [(step, min(3, step + ahead), {step + 1}) for step in range(4)]
    rows = metrics(folder, "rl")
    assert [(row["step"], row["policy_version"]) for row in rows] == [(step, step + 1) for step in range(4)]
    assert all("accuracy/heldout" in row for row in rows)


def test_a_run_that_ends_while_an_evaluation_is_drawn_evaluates_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = RolloutStream.take

    def ended(stream: RolloutStream, step: int, *more: Any) -> list[Group]:
        if step == 2:
            raise Interrupted(signal.SIGTERM)
        return take(stream, step, *more)

    text = HEAD + REWARD + BEST + AHEAD.replace("STALENESS", "1")
    with monkeypatch.context() as patch:
        patch.setattr(RolloutStream, "take", ended)
        with pytest.raises(Interrupted):
            run(tmp_path, text)
    assert [row["step"] for row in metrics(tmp_path / "run", "rl")] == [0]  # step 1 is trained, and not recorded
    (first,) = metrics(tmp_path / "run", "rl")
    (report,) = evaluate_model(EvalRequest(model=f"{tmp_path / 'run'}:rl@best"), Console(quiet=True))  # not done yet
    assert (report.accuracy.value, report.accuracy.count) == (first["accuracy/heldout"], 6)
    folder = run(tmp_path, text, resume=True)
    rows = metrics(folder, "rl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all("accuracy/heldout" in row for row in rows)
