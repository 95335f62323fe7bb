"""The report's paired verdicts: after against before, on the same problems, from the completions of the eval stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlreason.report.findings import suites
from rlreason.report.page import render
from rlreason.report.read import read_run
from rlreason.report.verdicts import compare_all, result_line, verdicts
from rlreason.report.words import NARROW


def folder(root: Path, solved: dict[str, int]) -> Path:
    """A run cold -> grpo -> student, of which each solves so many of 100 problems, the first ones."""
    (root / "eval").mkdir()
    names = list(solved)
    stages = [
        {"name": name, "kind": "sft" if place == 0 else "grpo", "status": "done",
         "parents": [names[place - 1]] if place else ["policy"]}
        for place, name in enumerate(names)
    ]  # fmt: skip
    stages.append({"name": "final", "kind": "eval", "status": "done", "parents": names})
    manifest = {"rlreason_version": "0", "command": "rlreason run q", "stages": stages, "hardware": {}, "data": {}}
    (root / "manifest.json").write_text(json.dumps(manifest))
    (root / "recipe.toml").write_text('name = "q"\n')
    for name, count in solved.items():
        accuracy = {"value": count / 100, "low": count / 100 - 0.05, "high": count / 100 + 0.05, "count": 100}
        row = {"stage": "final", "model": name, "suite": "heldout", "accuracy": accuracy, "truncated": 0.0}
        (root / "eval" / f"final-{name}.json").write_text(json.dumps(row))
        lines = [
            {"problem_id": f"p{i}", "completions": [{"reward": {"verified": "correct" if i < count else "wrong"}}]}
            for i in range(100)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / "eval" / f"final-{name}.completions.jsonl").write_text(text)
    return root


def test_after_against_before_is_a_paired_verdict(tmp_path: Path) -> None:
    run = read_run(folder(tmp_path, {"cold": 40, "grpo": 52, "more": 54}))
    lines = verdicts(compare_all(run, suites(run)))
    assert lines[0].startswith("grpo is better than cold by 12.0 points on held-out problems, 95 % ")
    assert "on 100 problems (12 problems better, 0 worse; p = 0.001 corrected for 2 comparisons)" in lines[0]
    assert lines[1].startswith("On held-out problems nothing can be said below 6.0 points: more has +2.0 points")
    page = render(run)
    assert "Paired verdicts" in page
    assert lines[0] in page


def said(run: Path) -> str:
    found = read_run(run)
    return str(result_line(found, suites(found), compare_all(found, suites(found)))).replace(NARROW, " ")


def test_the_result_line_says_what_the_paired_verdicts_say(tmp_path: Path) -> None:
    """Of two stages of GRPO each. By their intervals alone, +-5 points each, nothing could be told of the second."""
    folder(tmp_path, {"cold": 40, "grpo": 52, "more": 54, "most": 61})
    assert said(tmp_path) == (
        "grpo lifted held-out accuracy from 40 % to 52 %, more left it where it was (52 % before, 54 % after: within "
        "the noise), most lifted it from 54 % to 61 %."
    )
    (tmp_path / "eval" / "final-most.completions.jsonl").unlink()
    assert said(tmp_path).endswith("most left it where it was (54 % before, 61 % after: within the noise).")


def test_a_fall_that_pairs_tell_is_called_one(tmp_path: Path) -> None:
    assert said(folder(tmp_path, {"cold": 60, "grpo": 52})) == "GRPO lowered held-out accuracy from 60 % to 52 %."


def test_the_model_that_the_recipe_names_is_before_where_no_stage_is(tmp_path: Path) -> None:
    """A recipe that measures its pretrained policy, trains it, and measures it again."""
    folder(tmp_path, {"grpo": 52, "policy": 40})
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["stages"] = [one for one in manifest["stages"] if one["name"] != "policy"]
    path.write_text(json.dumps(manifest))
    run = read_run(tmp_path)
    (line,) = verdicts(compare_all(run, suites(run)))
    assert line.startswith("grpo is better than policy by 12.0 points on held-out problems, 95 % ")
    (tmp_path / "eval" / "final-policy.json").unlink()
    alone = read_run(tmp_path)
    assert verdicts(compare_all(alone, suites(alone))) == []


def test_what_was_made_from_a_best_checkpoint_is_compared_with_that(tmp_path: Path) -> None:
    folder(tmp_path, {"cold": 40, "cold@best": 45, "grpo": 52})
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["stages"] = [one for one in manifest["stages"] if "@" not in one["name"]]
    path.write_text(json.dumps(manifest))
    run = read_run(tmp_path)
    (line,) = verdicts(compare_all(run, suites(run)))
    assert line.startswith("grpo is better than cold@best by 7.0 points")


@pytest.mark.parametrize("text", [None, '{"torn'])
def test_without_completions_there_is_no_verdict(tmp_path: Path, text: str | None) -> None:
    path = folder(tmp_path, {"cold": 40, "grpo": 52}) / "eval" / "final-grpo.completions.jsonl"
    path.unlink()
    if text is not None:
        path.write_text(text)
    run = read_run(tmp_path)
    assert verdicts(compare_all(run, suites(run))) == []
    assert "Paired verdicts" not in render(run)
