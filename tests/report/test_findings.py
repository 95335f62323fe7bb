"""The one-line result claims what the data carries, and no more; numbers read as written; the picture is valid SVG."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rlreason import report
from rlreason.errors import UsageError
from rlreason.report import curve, findings, words
from rlreason.report.read import read_run, recipe_name
from rlreason.types import Interval


def headline(run_dir: Path) -> str | None:
    run = read_run(run_dir)
    line = findings.headline(run, findings.suites(run), signs={})
    return line and line.replace(words.NARROW, " ")


def set_accuracy(run_dir: Path, model: str, value: float, half: float = 0.04, **fields: object) -> None:
    path = run_dir / "eval" / f"final-{model}.json"
    result = json.loads(path.read_text())
    result["accuracy"] = {"value": value, "low": value - half, "high": value + half, "count": 500}
    path.write_text(json.dumps(result | fields))


def test_difference_is_newcombes() -> None:
    """Newcombe 1998, Statistics in Medicine 17:873, table II, example (a), method 10: 56/70 - 48/80."""
    found = findings.difference(
        Interval(value=56 / 70, low=0.6918, high=0.8769, count=70),
        Interval(value=48 / 80, low=0.4905, high=0.7004, count=80),
    )
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(0.0524, abs=2e-4)
    assert found.high == pytest.approx(0.3339, abs=2e-4)


def test_a_fall_is_called_a_fall(run_dir: Path) -> None:
    set_accuracy(run_dir, "grpo", 0.2)
    assert (headline(run_dir) or "").startswith("GRPO lowered held-out accuracy from 44 % to 20 %;")


def test_a_model_that_two_stages_evaluate_keeps_both_results(run_dir: Path) -> None:
    """The first stage's are of the held-out suite, the other's of a suite by its name; no result is lost."""
    first = json.loads((run_dir / "eval" / "final-grpo.json").read_text())
    manifest = json.loads((run_dir / "manifest.json").read_text())
    again = dict(manifest["stages"][-1], name="code", kind="eval")
    manifest["stages"].append(again)
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    low = {"value": 0.1, "low": 0.08, "high": 0.12, "count": 500}
    for model, accuracy in (("grpo", low), ("alone", low)):
        row = first | {"stage": "code", "model": model, "accuracy": accuracy}
        (run_dir / "eval" / f"code-{model}.json").write_text(json.dumps(row))
    found = findings.suites(read_run(run_dir))
    assert [suite.name for suite in found] == ["heldout", "code"]
    by_suite = [{one.result.model: one.result.accuracy.value for one in suite.models} for suite in found]
    assert by_suite[0]["grpo"] == first["accuracy"]["value"]
    assert by_suite[1] == {"grpo": 0.1, "alone": 0.1}
    chain = findings.of_the_chain(read_run(run_dir), found)
    assert chain is not None
    shown = {one.result.model: one.result.accuracy.value for one in chain.models}
    assert shown == by_suite[0] | {"alone": 0.1}


def test_a_stage_that_measures_other_models_is_of_the_same_suite(run_dir: Path) -> None:
    """As `before` and `after` of a chain are."""
    row = json.loads((run_dir / "eval" / "final-grpo.json").read_text())
    (run_dir / "eval" / "before-policy.json").write_text(json.dumps(row | {"stage": "before", "model": "policy"}))
    (suite,) = findings.suites(read_run(run_dir))
    assert {"policy", "grpo"} <= {one.result.model for one in suite.models}


def test_no_claim_within_the_noise(run_dir: Path) -> None:
    set_accuracy(run_dir, "grpo", 0.47)
    assert (headline(run_dir) or "").startswith(
        "GRPO left held-out accuracy where it was (44 % before, 47 % after: within the noise);"
    )


def test_the_control_student_is_compared_honestly(run_dir: Path) -> None:
    set_accuracy(run_dir, "student_control", 0.76)
    assert "77 %, no better than 76 % for a model of that size" in (headline(run_dir) or "")
    set_accuracy(run_dir, "student_control", 0.9)
    assert "77 %, worse than 90 % for a model of that size" in (headline(run_dir) or "")


def test_a_student_without_known_size_or_control(run_dir: Path) -> None:
    (run_dir / "eval" / "final-student_control.json").unlink()
    set_accuracy(run_dir, "student", 0.82, parameters=None)
    assert (headline(run_dir) or "").endswith("the student reaches 101 % of it.")


def test_the_accuracy_that_a_student_keeps_is_its_own_teachers(run_dir: Path) -> None:
    """Not that of a later stage of GRPO, of which the sentence before speaks."""
    manifest = json.loads((run_dir / "manifest.json").read_text())
    later = {"name": "later", "kind": "grpo", "status": "done", "parents": ["grpo"]}
    manifest["stages"].insert(-1, later)
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    result = json.loads((run_dir / "eval" / "final-grpo.json").read_text()) | {"model": "later"}
    (run_dir / "eval" / "final-later.json").write_text(json.dumps(result))
    assert "of the accuracy of grpo: " in (headline(run_dir) or "")


def test_a_student_alone_names_its_teacher(run_dir: Path) -> None:
    (run_dir / "eval" / "final-cold_start.json").unlink()
    (run_dir / "eval" / "final-student_control.json").unlink()
    assert headline(run_dir) == "The student with 48 % of the parameters keeps 95 % of the accuracy of grpo."


def test_one_model_alone(run_dir: Path) -> None:
    for name in ("grpo", "student", "student_control"):
        (run_dir / "eval" / f"final-{name}.json").unlink()
    assert headline(run_dir) == "cold_start reaches 44 % held-out accuracy."


def test_answers_without_a_verdict_are_said_beside_the_accuracy(run_dir: Path) -> None:
    """35 of 100 answers had no verdict: the page says so in the headline and at its top."""
    path = run_dir / "eval" / "final-grpo.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"broken": 0.35, "timed_out": 0.0}))
    manifest = run_dir / "manifest.json"
    said = {"stage": "grpo", "rule": "truncated", "step": 7, "text": "31% of <b>completions</b> are cut off"}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"warnings": [said]}))
    (cut, left_out) = findings.warnings(read_run(run_dir))
    assert cut == ("grpo, step 7", "31% of <b>completions</b> are cut off")
    assert left_out[0] == "grpo on heldout"
    assert left_out[1].replace(words.NARROW, " ").startswith("35 % had a check that broke: its accuracy is")
    assert "answers without a verdict are left out" in (headline(run_dir) or "")
    page = report.build(run_dir).read_text()
    assert page.index("31% of &lt;b&gt;completions&lt;/b&gt;") < page.index('id="chain"')


def test_no_verified_answer_is_no_accuracy_of_0(run_dir: Path) -> None:
    for name in ("grpo", "student", "student_control"):
        (run_dir / "eval" / f"final-{name}.json").unlink()
    path = run_dir / "eval" / "final-cold_start.json"
    nothing = {"value": 0.0, "low": 0.0, "high": 1.0, "count": 0}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"accuracy": nothing, "broken": 1.0}))
    assert (headline(run_dir) or "").startswith("cold_start has no verified answer")


@pytest.mark.parametrize("parent", ["grpo", "stages/02-grpo/checkpoint", "02" * 32, "02-grpo"])
def test_parents_by_name_path_or_hash(run_dir: Path, parent: str) -> None:
    manifest = json.loads((run_dir / "manifest.json").read_text())
    manifest["stages"][3]["parents"] = [parent]
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    run = read_run(run_dir)
    assert [stage.name for stage in findings.parents(run, run.stages[3])] == ["grpo"]


def test_tags_in_natural_order() -> None:
    assert sorted(["terms=10", "terms=9", "hard", "terms=2"], key=findings.natural) == [
        "hard", "terms=2", "terms=9", "terms=10",
    ]  # fmt: skip


def test_recipe_name(tmp_path: Path) -> None:
    assert recipe_name('name = "a"', {}, tmp_path) == "a"
    assert recipe_name(None, {"command": "rlreason run quickstart seed=3"}, tmp_path) == "quickstart"
    assert recipe_name("not toml [", {"command": "rlreason run my/deep.toml"}, tmp_path) == "deep"
    assert recipe_name(None, {"command": "rlreason run recipes/gsm8k/recipe.toml"}, tmp_path) == "gsm8k"
    assert recipe_name(None, {}, tmp_path) == tmp_path.name


def test_words() -> None:
    plain = {
        words.percent(0.814): "81 %",
        words.percent(0.0213): "2.1 %",
        words.percent(0.0): "0 %",
        words.percent(None): "–",
        words.points(-0.042): "−4.2",
        words.big(1_312_640): "1.31 M",
        words.big(30.5e9): "30.5 B",
        words.big(512): "512",
        words.duration(3.21): "3.2 s",
        words.duration(231.7): "3 min 52 s",
        words.duration(7 * 3600 + 301): "7 h 05 min",
        words.duration(200_000): "2 d 7 h",
        words.moment("2026-09-21T16:00:12+02:00"): "2026-09-21 14:00 UTC",
        words.moment("yesterday"): "yesterday",
        words.moment(1e30): "1e+30",
    }
    for got, expected in plain.items():
        assert got.replace(words.NARROW, " ") == expected


def test_the_curve_is_valid_svg_for_light_and_dark(run_dir: Path, tmp_path: Path) -> None:
    path = report.curve_svg(run_dir, tmp_path / "docs" / "curve.svg")
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    said = [(node.text or "").replace(words.NARROW, " ") for node in root.iter("{http://www.w3.org/2000/svg}text")]
    for expected in ("cold_start", "grpo", "student", "44 %", "81 %", "77 %", "held-out accuracy", "from grpo"):
        assert expected in said
    assert "prefers-color-scheme: dark" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_curve_of_a_hostile_or_low_run(run_dir: Path, tmp_path: Path) -> None:
    manifest = json.loads((run_dir / "manifest.json").read_text())
    manifest["stages"][1]["name"] = "<b>&\u0000\ud83d"
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    for path in run_dir.glob("eval/*.json"):
        result = json.loads(path.read_text())
        result["model"] = "<b>&\u0000\ud83d" if result["model"] == "grpo" else result["model"]
        result["accuracy"] = {"value": 0.011, "low": 0.006, "high": 0.018, "count": 1319}
        path.write_text(json.dumps(result))
    for path in run_dir.glob("stages/*/metrics.jsonl"):
        path.unlink()
    text = report.curve_svg(run_dir, tmp_path / "curve.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert f"2.0{words.NARROW}%" in text, "the scale follows a run at one per cent"


def test_no_curve_without_accuracy(run_dir: Path, tmp_path: Path) -> None:
    for path in [*run_dir.glob("eval/*.json"), *run_dir.glob("stages/*/metrics.jsonl")]:
        path.unlink()
    with pytest.raises(UsageError, match="no stage has accuracy/heldout"):
        report.curve_svg(run_dir, tmp_path / "curve.svg")


def test_the_recipes_own_student_is_no_stage(run_dir: Path) -> None:
    """A stage may be called "student" too; one that begins with the recipe's fresh student does not come from it."""
    run = read_run(run_dir)
    control = run.stages[4]
    assert control.parents == ("student",)
    assert findings.parents(run, control) == []
    assert findings.origin(control) == ["a new student"]
    assert "student" in {stage.name for stage in findings.parents(run, run.stages[5])}, "an eval stage measured it"


def test_an_eval_stage_is_no_panel_of_the_curve(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert run.stages[5].steps
    found = curve.panels(run, findings.suites(run)[0])
    assert [panel.title for panel in found] == ["cold_start", "grpo", "student", "student_control"]
    assert [(panel.steps, panel.last_step) for panel in found][:2] == [(200, 199), (70, 69)]
