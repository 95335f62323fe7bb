"""Labelled answers, rates with hand-derived intervals, what an audit is of, and where it is found again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rlreason.errors import UsageError
from rlreason.rewards.audit import record
from rlreason.rewards.audit.attacks import attacks_on
from rlreason.rewards.audit.conduct import Order, audit
from rlreason.rewards.audit.identity import identify, same
from rlreason.rewards.audit.labelled import read_labelled
from rlreason.rewards.audit.redteam import MILD
from rlreason.rewards.audit.result import Finding
from rlreason.rewards.audit.specimens import STYLES, answer_kind, specimen_of, wrong_answers
from rlreason.rewards.audit.subject import Subject
from rlreason.rewards.math.answer import check
from rlreason.types import Problem, Verdict

PLANTS = Path(__file__).parent / "audit_plants.py"


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        ("42", "integer"), ("-7", "integer"), ("1,234", "integer"), ("3/4", "fraction"), ("0.5", "fraction"),
        ("\\frac{1}{2}", "fraction"), ("x^2+2x", "expression"), ("\\sqrt{2}", "expression"), ("2\\pi", "expression"),
        ("\\{1, 2\\}", "set"), ("(1, 2)", "set"), ("1, 2, 3", "set"), ("B", "choice"), ("(C)", "choice"),
        ("Tuesday", "text"), ("\\text{even}", "text"), (("6", "six"), "integer"), ({"answer": "B"}, "choice"),
        ({"numbers": [1, 2], "target": 3}, "numbers"), ({"type": "stdin", "cases": []}, "code"),
    ],
)  # fmt: skip
def test_kinds_of_answers(reference: object, kind: str) -> None:
    assert answer_kind(reference) == kind  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "gold", ["42", "0", "-7", "1,234", "3/4", "-2/3", "0.5", "x+1", "\\sqrt{2}", "B", "(C)", "yes"]
)
def test_wrong_answers_are_wrong(gold: str) -> None:
    """By our own verifier, which decides what they are mathematically."""
    for wrong in wrong_answers(gold):
        assert check(f"\\boxed{{{wrong}}}", gold).verdict is not Verdict.CORRECT, wrong


@pytest.mark.parametrize(
    "gold",
    ["42", "0", "-7", "100", "3/4", "0.5", "2.50", "1.0", "1,234", "\\dfrac{1}{9}", "$\\frac{3}{8}$", "50\\%",
     "B", "(C)", "x+1", "\\infty", "\\{1, 2\\}", "yes"],
)  # fmt: skip
def test_attacks_are_wrong_whatever_the_gold(gold: str) -> None:
    """An honest verifier pays none of what is said to be unpaid: no false alarm of the audit's own making."""
    problem = Problem(id="p", prompt="What is it?", verifier="math", reference=gold)
    specimen = specimen_of(problem)
    assert specimen is not None
    paid = [
        (attack.family, attack.name)
        for style in STYLES[:2]
        for attack in attacks_on(specimen, style)
        if attack.expected == "unpaid" and attack.family not in MILD and len(attack.text) < 20_000
        if check(attack.prefill + attack.text, gold).verdict is Verdict.CORRECT
    ]
    assert paid == []


def test_formats_of_labelled_rows(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "all.jsonl",
        {"prompt": "1+1", "response": "\\boxed{2}", "reference": "2", "correct": True},
        {"problem": "1+1", "response": "\\boxed{3}", "answer": 2, "correct": False},
        {"gold": "\\frac12", "pred": "0.5", "equal": True, "mode": "answer", "kind": "fraction"},
        {"response": "```python\npass\n```", "tests": {"type": "stdin", "cases": []}, "want": "fail", "id": "c"},
    )
    rows = read_labelled(path, "math").rows
    assert [(row.right, row.bare, row.kind) for row in rows] == [
        (True, False, "integer"), (False, False, "integer"), (True, True, "fraction"), (False, False, "code"),
    ]  # fmt: skip
    assert [row.problem.verifier for row in rows] == ["math", "math", "math", "code"]
    assert [row.problem.prompt for row in rows] == ["1+1", "1+1", "", ""]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"response": "x", "correct": True}, "line 1: no column for the gold answer"),
        ({"reference": "x", "correct": True}, "line 1: no column for the response"),
        ({"response": "x", "reference": "x"}, "line 1: no column for the label"),
        ({"response": "x", "reference": "x", "correct": "maybe"}, "'correct' must be true or false, found \"maybe\""),
        ({"response": 3, "reference": "x", "correct": True}, "the response must be text, found int"),
        ([1], "expected a JSON object, found list"),
    ],
)
def test_rows_that_can_not_be_used(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_labelled(lines(tmp_path / "bad.jsonl", row), "math")


def test_stored_rollouts_of_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "stages" / "01-grpo"
    folder.mkdir(parents=True)
    row = {"problem_id": "p", "prompt": "1+1", "reference": "2", "response": "\\boxed{2}", "verdict": "correct"}
    lines(folder / "rollouts.jsonl", {**row, "verified": "correct"}, {**row, "verified": "wrong"},
          {**row, "verified": None, "verdict": "broken"})  # fmt: skip
    found = read_labelled(tmp_path, "math")
    assert [one.right for one in found.rows] == [True, False]
    assert "run's own verifier" in found.labels
    with pytest.raises(UsageError, match=r"no stages/\*/rollouts.jsonl"):
        read_labelled(tmp_path / "stages", "math")


def test_rates_are_those_of_the_labels(tmp_path: Path) -> None:
    """8 of 10 right answers are in the form that is paid, and 1 of 4 wrong ones is mislabelled, so it is paid."""
    rows = [{"response": f"<answer>{n}</answer>", "reference": str(n), "correct": True} for n in range(8)]
    rows += [{"response": f"it is {n}", "reference": str(n), "correct": True} for n in (8, 9)]
    rows += [{"response": f"<answer>{n + 1}</answer>", "reference": str(n), "correct": False} for n in (1, 2, 3)]
    rows += [{"response": "<answer>5</answer>", "reference": "5", "correct": False}]
    data = lines(tmp_path / "rows.jsonl", *rows)
    result = audit(Order(subject=Subject(name=f"{PLANTS}:honest", verifier="math"), data=data, problems=1))
    assert result.calibration is not None
    total, integers = result.calibration.kinds
    assert (total.right, total.wrong, total.unscored, integers.kind) == (10, 4, 0, "integer")
    positive, negative = total.false_positive, total.false_negative
    assert positive is not None
    assert negative is not None
    assert (positive.value, positive.count, negative.value, negative.count) == (0.25, 4, 0.2, 10)
    # Wilson for 1 of 4: (1/4 + z²/8 ± z·sqrt(3/64 + z²/64)) / (1 + z²/4) with z² = 3.8415.
    assert positive.low == pytest.approx(0.0456, abs=1e-4)
    assert positive.high == pytest.approx(0.6994, abs=1e-4)
    assert [one.label for one in result.calibration.mistakes] == [False, True, True]  # paid wrong ones first
    # The lower end, 4.6 %, is above 1 %: it fails. That of the refused ones, 5.7 %, is below 10 %.
    assert [one.name for one in result.failures] == ["calibration.false_positive"]


def test_identity_follows_what_is_imported_from_beside_it(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text("import json\nLIMIT = 1\n")
    (tmp_path / "other.py").write_text("X = 1\n")
    judge = tmp_path / "judge.py"
    judge.write_text("import numpy\nfrom parts import LIMIT\ndef f(problem, completion):\n    return LIMIT\n")
    first = identify(f"{judge}:f", {"a": (1, 2)})
    assert sorted(first.sources) == ["judge.py", "parts.py"]
    assert {"python", "rlreason", "numpy"} == set(first.versions)
    assert first.reward == "judge.py:f"
    assert same(first, identify(f"{judge}:f", {"a": [1, 2]})) == []
    assert same(first, identify(f"{judge}:f", {"a": [1, 3]})) == [
        "its options were {'a': [1, 3]}, and are {'a': [1, 2]}"
    ]
    (tmp_path / "other.py").write_text("X = 2\n")
    assert same(first, identify(f"{judge}:f", {"a": [1, 2]})) == []
    (tmp_path / "parts.py").write_text("LIMIT = 2\n")
    assert same(first, identify(f"{judge}:f", {"a": [1, 2]})) == ["changed since: code parts.py"]


def test_relative_imports_of_a_package_count(tmp_path: Path) -> None:
    package = tmp_path / "judges"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "words.py").write_text("A = 1\n")
    (package / "main.py").write_text("from .words import A\nfrom . import more\n")
    (package / "more.py").write_text("")
    assert sorted(identify(f"{package / 'main.py'}:f", {}).sources) == ["main.py", "more.py", "words.py"]


def test_accuracy_is_of_its_verifier() -> None:
    assert same(identify("accuracy", {}, "math"), identify("accuracy", {}, "code")) == ["it is of accuracy (code)"]
    assert list(identify("format", {}).sources) == ["rlreason.rewards"]


def test_written_found_and_refused(tmp_path: Path) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text("def f(problem, completion):\n    return completion.response.strip() == problem.reference\n")
    result = audit(Order(subject=Subject(name=f"{judge}:f", verifier="math"), problems=1))
    identity = identify(f"{judge}:f", {})
    assert result.identity == identity
    path = record.default_path(f"{judge}:f", {}, "math")
    assert path == tmp_path / "judge.f.audit.json"
    record.write(result, path)
    stored, why = record.find(identity, [tmp_path])
    assert stored is not None
    assert why == []
    assert stored.false_positive == result.calibration.kinds[0].false_positive  # type: ignore[union-attr]
    failed = Finding(name="contract.nan", severity="fail", title="returns NaN", detail="nan")
    record.write(replace(result, findings=(failed,)), path)
    assert record.find(identity, [tmp_path]) == (None, ["judge.f.audit.json: failed (returns NaN)"])
    judge.write_text(judge.read_text() + "# changed\n")
    stored, why = record.find(identify(f"{judge}:f", {}), [tmp_path])
    assert (stored, why) == (None, ["judge.f.audit.json: changed since: code judge.py"])
