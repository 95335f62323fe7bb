"""Planted contamination is found, however it is written; sets that have nothing in common have none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rlreason.cli import app
from rlreason.config import load
from rlreason.contamination import contamination_of, named
from rlreason.errors import UsageError
from rlreason.eval.contamination import Index, Kind, words_of
from rlreason.job import JobOptions, run_job
from rlreason.types import Problem

DATA = (Path(__file__).parents[2] / "../shared/data").resolve()
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets for tests are not beside the repository")


def questions(name: str) -> dict[str, str]:
    rows = map(json.loads, (DATA / f"{name}.jsonl").read_text().strip().split("\n"))
    return {row["id"]: row["prompt"] for row in rows}


def respaced(text: str) -> str:
    return "  " + text.upper().replace(" ", " \n ")


def other_latex(text: str) -> str:
    """What authors change without a thought: fractions, delimiters, spacing, thin spaces, brackets that grow."""
    for old, new in (
        ("\\frac", "\\dfrac"),
        ("\\left(", "("),
        ("\\right)", ")"),
        ("\\cdot", "\\times"),
        ("\\le ", "\\leq "),
    ):
        text = text.replace(old, new)
    text = re.sub(r"\$([^$]+)\$", r"\\( \\displaystyle \1\\, \\)", text)
    return text.replace("+", " + ").replace(". ", ".\\quad ") + " "


def renumbered(text: str) -> str:
    return re.sub(r"\d+", lambda found: str(int(found[0]) * 3 + 7), text)


def inside(text: str) -> str:
    return f"Here is a task for you. Read it twice. {text} Give the result and say how you found it, please."


def found(suite: dict[str, str], rows: dict[str, str]) -> dict[str, Kind]:
    return {match.problem: match.kind for match in Index(suite).matches(rows.items())}


@needs_data
@pytest.mark.parametrize(("name", "every"), [("gsm8k_test", 6), ("math500", 5), ("aime24", 1)])
def test_planted_problems_are_found_and_no_others(name: str, every: int) -> None:
    """Every few problems are planted among clean training rows, in each way; what is found is what was planted."""
    suite = questions(name)
    clean = questions("aime25") if name == "gsm8k_test" else dict(list(questions("gsm8k_train").items())[:1000])
    assert found(suite, clean) == {}
    planted = dict(list(suite.items())[::every])
    for change, kinds in (
        (str, {Kind.EXACT}),
        (respaced, {Kind.EXACT}),
        (other_latex, {Kind.EXACT, Kind.LATEX, Kind.NGRAM}),
    ):
        rows = clean | {f"planted-{key}": change(text) for key, text in planted.items()}
        got = found(suite, rows)
        assert set(got) == set(planted), change
        assert set(got.values()) <= kinds
    long = {key: text for key, text in planted.items() if len(words_of(text)) >= 10}
    assert set(found(suite, clean | {f"in-{key}": inside(text) for key, text in long.items()})) == set(long)


@needs_data
@pytest.mark.parametrize(("name", "share"), [("gsm8k_test", 1.0), ("math500", 0.82), ("aime24", 1.0), ("aime25", 1.0)])
def test_renumbered_problems_are_found_where_they_have_words_enough(name: str, share: float) -> None:
    """413 of MATH-500's 500 have: "Compute $1+2$" with other numbers is another problem."""
    suite = dict(list(questions(name).items())[:500])
    got = found(suite, {f"planted-{key}": renumbered(text) for key, text in suite.items()})
    assert len(got) >= share * len(suite)


@needs_data
def test_sets_without_anything_in_common() -> None:
    for train, suite in (("gsm8k_train", "aime24"), ("gsm8k_train", "math500"), ("math_train", "aime25")):
        assert found(questions(suite), dict(list(questions(train).items())[:4000])) == {}


@needs_data
def test_what_is_really_there_is_found() -> None:
    """OlympiadBench has two problems that MATH's training set has in other LaTeX."""
    got = found(questions("olympiadbench"), questions("math_train"))
    assert list(got.values()) == [Kind.LATEX, Kind.LATEX]


def test_words_by_hand() -> None:
    assert words_of("Find $\\dfrac{1}{2}\\cdot x$,  please.") == ["find", "frac", "1", "2", "x", "please"]
    assert "".join(words_of("find \\(\\frac12 \\times  x\\) please")) == "findfrac12xplease"
    assert words_of("A $3\\,000$-km walk") == ["a", "3", "000", "km", "walk"]


def test_short_problems_are_found_as_a_whole_only() -> None:
    suite = {"p": "What is $2+2$?"}
    assert found(suite, {"a": "what is 2 + 2"}) == {"p": Kind.LATEX}
    assert found(suite, {"a": "What is $3+2$?", "b": "Tell me: what is 2+2, and why?"}) == {}


def test_the_surest_match_of_each_problem_is_told() -> None:
    text = "A train goes from Rome to Paris in 12 hours and a car needs 15; who is first and by how much time?"
    matches = Index({"p": text}).matches([("n", renumbered(text)), ("i", inside(text)), ("e", text.upper())])
    assert [(one.kind, one.row, one.share) for one in matches] == [(Kind.EXACT, "e", 1.0)]


STORY = "Ann has {} boxes with {} pens in each of them, and gives {} pens to her brother. How many pens does she keep?"


def suite_file(folder: Path) -> None:
    rows = [{"question": STORY.format(3, 7, k), "answer": f"so\n#### {21 - k}"} for k in (2, 5)]
    rows.append({"question": "What is the name of a number that has no other factors at all?", "answer": "#### 1"})
    (folder / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_command_names_what_it_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": STORY.format(3, 7, 2).replace("has", "has "), "answer": "19"}, {"prompt": "1+1=", "answer": "2"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["contamination", "train.jsonl", "--local", "--out", "matches.jsonl"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "2 of the 3 problems of gsm8k are also trained on (1 word for word, 1 with other numbers)" in text
    matches = [json.loads(line) for line in (tmp_path / "matches.jsonl").read_text().splitlines()]
    assert [(one["suite"], one["kind"], one["row"]) for one in matches] == [
        ("gsm8k", "exact", "train-1"),
        ("gsm8k", "renumbered", "train-1"),
    ]
    (tmp_path / "gsm8k_test.jsonl").unlink()
    assert isinstance(CliRunner().invoke(app, command).exception, UsageError)  # ``main`` makes exit code 2 of it


RECIPE = """
name = "tiny"
[policy]
model_type = "qwen3"
tokenizer = { kind = "bpe", vocab_size = 300 }
model = { hidden_size = 32, num_hidden_layers = 1, num_attention_heads = 2, num_key_value_heads = 1, head_dim = 16, \
intermediate_size = 32 }
[data]
train = "own.jsonl"
[[stage]]
kind = "sft"
name = "cold"
steps = 1
batch_size = 2
optimizer = { lr = 1e-2 }
"""


def run(folder: Path, first: str) -> tuple[Any, str]:
    rows = [{"prompt": first, "answer": "19", "solution": "so"}, {"prompt": "1+1=", "answer": "2", "solution": "so"}]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE)
    report = run_job(load(recipe), recipe, JobOptions(folder=folder / "run", command=""), Console(quiet=True))
    return json.loads((folder / "run" / "manifest.json").read_text()), report.read_text()


def test_a_run_says_what_it_shares_with_the_suites_that_are_here(tmp_path: Path) -> None:
    suite_file(tmp_path)
    manifest, report = run(tmp_path, STORY.format(4, 9, 2))
    (line,) = manifest["contamination"]
    assert line.startswith("2 of the 3 problems of gsm8k are also trained on (1 half or more of their 10-grams, 1 with")
    assert [one["rule"] for one in manifest["warnings"]] == ["contamination"]
    assert "of the 3 problems of gsm8k are also trained on" in report


def test_a_clean_run_says_so(tmp_path: Path) -> None:
    suite_file(tmp_path)
    manifest, report = run(tmp_path, "Where do swallows go when the winter comes and the days are short?")
    assert manifest["contamination"] == ["none of the 3 problems of gsm8k is like a training prompt"]
    assert manifest["warnings"] == []
    assert "none of the 3 problems of gsm8k is like a training prompt" in report


def test_suites_of_tasks_have_nothing_to_compare_with() -> None:
    problem = Problem(id="p", prompt="1+1=", verifier="math", reference="2")
    with pytest.raises(ValueError, match="no problems of its own"):
        contamination_of([problem], named("arithmetic"))
