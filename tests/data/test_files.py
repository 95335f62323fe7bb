"""Rows to problems by hand-made files, and every complaint about them."""

import json
import re
from pathlib import Path

import pytest

from rlreason.data.files import locate, read_file
from rlreason.data.rows import Columns, RowFormat
from rlreason.errors import UsageError
from rlreason.types import Message, Problem

GOOD = {"id": "a", "prompt": "2+2?", "answer": "4"}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_row_becomes_a_problem(tmp_path: Path) -> None:
    row = GOOD | {"solution": "It is 2+2 = <<2+2=4>>4.\n#### 4", "source": "sums/train", "meta": {"level": 1}}
    (problem,) = read_file(write(tmp_path / "sums.jsonl", row), RowFormat()).problems
    assert problem == Problem(
        id="a",
        prompt="2+2?",
        verifier="math",
        reference="4",
        source="sums/train",
        thought="It is 2+2 = 4.",
        answer="4",
        extra={"meta": {"level": 1}, "answer": row["answer"], "solution": row["solution"]},
    )


def test_gold_after_a_marker_from_columns_of_other_names(tmp_path: Path) -> None:
    path = write(
        tmp_path / "sums.jsonl", "", {"question": "q", "answer": "#### is the mark\n2*9 = <<2*9=18>>18\n#### 18 "}
    )
    columns = Columns(prompt=("prompt", "question"), answer=("solution", "answer"), solution=("solution", "answer"))
    (problem,) = read_file(path, RowFormat(columns=columns, answer_after="####", verifier="numbers")).problems
    # No id column: the file's name and the line, which is the second as the first is blank.
    assert (problem.id, problem.prompt, problem.reference) == ("sums-2", "q", "18")
    assert (problem.thought, problem.answer) == ("#### is the mark\n2*9 = 18", "18")
    assert (problem.verifier, problem.source) == ("numbers", "sums")


@pytest.mark.parametrize(
    ("solution", "thought"),
    [
        ("So it is \\boxed{4}.", "So it is \\boxed{4}."),
        ("#### Step one\nfour", "#### Step one\nfour"),
        ("#### 4", None),
        ("", None),
        (None, None),
    ],
)
def test_thoughts(tmp_path: Path, solution: str | None, thought: str | None) -> None:
    (problem,) = read_file(write(tmp_path / "a.jsonl", GOOD | {"solution": solution}), RowFormat()).problems
    assert (problem.thought, problem.answer) == (thought, "4" if thought else None)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (4, "4"),
        (0.5, "0.5"),
        (["4", 4.5], ("4", "4.5")),
        ({"numbers": [1, 2], "target": 3}, {"numbers": [1, 2], "target": 3}),
        (" x ", "x"),
    ],
)
def test_gold_answers_of_all_kinds(tmp_path: Path, answer: object, reference: object) -> None:
    (problem,) = read_file(write(tmp_path / "a.jsonl", GOOD | {"answer": answer}), RowFormat()).problems
    assert problem.reference == reference


def test_tests_are_the_reference_of_a_program(tmp_path: Path) -> None:
    tests = {"type": "stdin", "cases": [{"input": "1", "output": "2"}]}
    rows = [{"id": "a", "prompt": "p", "tests": tests, "solution": "print(2)"}, {"id": "b", "prompt": "p"}]
    rows[1]["tests"] = json.dumps(tests)
    for problem in read_file(write(tmp_path / "a.jsonl", *rows), RowFormat(verifier="program")).problems:
        assert problem.reference == tests
        assert problem.thought is problem.answer is None


def test_messages(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    (problem,) = read_file(write(tmp_path / "a.jsonl", {"messages": turns, "answer": "4"}), RowFormat()).problems
    assert problem.messages == (Message(role="system", content="s"), Message(role="user", content="u"))
    assert problem.prompt == "u"


def test_parquet_gives_the_same_problems(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the train extra")
    from pyarrow import parquet

    rows = [GOOD | {"id": str(i), "answer": i, "solution": f"{i}\n#### {i}"} for i in range(5)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "sums.parquet")
    from_jsonl = read_file(write(tmp_path / "sums.jsonl", *rows), RowFormat())
    assert read_file(tmp_path / "sums.parquet", RowFormat()) == from_jsonl
    broken = write(tmp_path / "broken.parquet", "no parquet")
    with pytest.raises(UsageError, match=r"broken\.parquet: not readable as Parquet"):
        read_file(broken, RowFormat())
    rows[3]["answer"] = None
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "sums.parquet")
    with pytest.raises(UsageError, match=r"sums\.parquet, row 4, column 'answer': the gold answer is empty"):
        read_file(tmp_path / "sums.parquet", RowFormat())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"id": "b", "prompt": ', "line 17: not valid JSON: Expecting value at character 22; each line must be one"),
        ("[1]", "line 17: a list; each line must be one whole JSON object"),
        ('{"id": "\\ud800"}', "line 17: not valid Unicode text: 'utf-8' codec can't encode"),
        ('{"a": ' + "9" * 5000 + "}", "line 17: not readable as JSON: Exceeds the limit"),
        (GOOD | {"answer": " "}, "line 17, column 'answer': the gold answer is empty; remove the row or fill it in"),
        (GOOD | {"answer": None}, "line 17, column 'answer': the gold answer is empty"),
        (GOOD | {"answer": []}, "line 17, column 'answer': is an empty list; remove the row or give the gold answer"),
        (GOOD | {"answer": True}, "line 17, column 'answer': holds a bool; it must be text, a number, a list"),
        (GOOD | {"prompt": ""}, "line 17, column 'prompt': is empty; remove the row or fill it in"),
        (GOOD | {"prompt": 7.5, "id": ["x"]}, "line 17, column 'id': holds a list; it must be text"),
        (GOOD | {"tests": "none"}, "line 17, column 'tests': holds a str; it must be an object such as {'type'"),
        (GOOD | {"messages": "hi"}, "line 17, column 'messages': must be a list of {role, content}"),
        (
            GOOD | {"messages": [{"role": "assistant", "content": "x"}]},
            "column 'messages': must end with a turn of the",
        ),
        (GOOD | {"id": "3"}, "line 17, column 'id': id '3' is that of line 4 already; each problem needs its own"),
        (
            {"id": "b", "promt": "p", "answer": "4"},
            "line 17: no column 'prompt' for the prompt; did you mean 'promt'? (there are: id, promt, answer); "
            "set data.columns.prompt",
        ),
        (
            {"prompt": "p", "gold": "4"},
            "line 17: no column 'answer' for the answer (there are: prompt, gold); set data.",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: object, message: str) -> None:
    rows = [GOOD | {"id": str(i)} for i in range(16)]
    path = write(tmp_path / "sums.jsonl", *rows, row)
    with pytest.raises(UsageError, match=re.escape(f"{path}, ") + ".*" + re.escape(message)) as raised:
        read_file(path, RowFormat())
    assert "\n" not in str(raised.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"id": "é"}'.encode("latin-1"))
    with pytest.raises(UsageError, match=r"line 1: not valid Unicode text.*save it as UTF-8"):
        read_file(path, RowFormat())
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert read_file(path, RowFormat()).problems[0].id == "a"


def test_settings_that_fit_no_row(tmp_path: Path) -> None:
    path = write(tmp_path / "sums.jsonl", GOOD)
    with pytest.raises(UsageError, match=r"line 1: no column 'solutions' for the solution \(there are: id, prompt"):
        read_file(path, RowFormat(columns=Columns(solution="solutions")))
    with pytest.raises(UsageError, match=r"line 1, column 'answer': has no '####' .*; correct data\.answer_after"):
        read_file(path, RowFormat(answer_after="####"))
    write(path, GOOD | {"answer": "x #### "})
    with pytest.raises(UsageError, match="column 'answer': the gold answer after '####' is empty"):
        read_file(path, RowFormat(answer_after="####"))
    with pytest.raises(UsageError, match="no rows in it"):
        read_file(write(path, ""), RowFormat())
    with pytest.raises(UsageError, match=r"sums\.tsv: data files end in \.jsonl, .*\.csv\.gz; convert it"):
        read_file(tmp_path / "sums.tsv", RowFormat())


def test_where_files_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [tmp_path / name for name in ("here", "recipe", "one", "two")]
    for place in places:
        place.mkdir(parents=True)
    here, recipe, one, two = places
    monkeypatch.chdir(here)
    monkeypatch.setenv("RLREASON_DATA", f"{one}:{two}")
    # From the last place to the first: each, once there, is taken before the ones after it.
    for place in (two, one, here, recipe):
        write(place / "sums.jsonl", GOOD)
        assert locate("sums.jsonl", recipe).resolve() == place / "sums.jsonl"
    assert locate(str(two / "sums.jsonl")) == two / "sums.jsonl"
    with pytest.raises(UsageError) as raised:
        locate("sum.jsonl", recipe)
    assert str(raised.value) == (
        f"no data file 'sum.jsonl'; did you mean 'sums.jsonl'? (looked for {recipe}/sum.jsonl, sum.jsonl, "
        f"{one}/sum.jsonl, {two}/sum.jsonl; folders can be added by $RLREASON_DATA)"
    )
