"""`rlreason score`, library side: rows in, rows out, errors with file and line."""

import json
import os
from pathlib import Path
from threading import Thread

import pytest
from typer.testing import CliRunner

from rlreason.cli import app
from rlreason.errors import UsageError
from rlreason.score_file import score_file


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def row(key: object, response: str, reference: object = "7") -> dict[str, object]:
    return {"id": key, "response": response, "reference": reference}


def test_rows_out_in_order(tmp_path: Path) -> None:
    rows: list[object] = [
        row("a", "<think>x</think>\\boxed{7}"),
        "",
        row(2, "\\boxed{8}"),
        row("c", "no answer", ["7", "8"]),
        row("d", "\\boxed{8}", ["7", "8"]),
        row("é\ud83d\ude00", "\\boxed{7}"),
    ]
    counts = score_file("math", write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    assert counts == {"correct": 3, "wrong": 1, "unparsed": 1}
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [r["id"] for r in out] == ["a", 2, "c", "d", "é\U0001f600"]
    assert [r["verdict"] for r in out] == ["correct", "wrong", "unparsed", "correct", "correct"]
    assert [r["score"] for r in out] == [1.0, 0.0, 0.0, 1.0, 1.0]
    assert list(out[0]) == ["id", "verdict", "score", "extracted", "seconds", "detail"]
    assert out[1]["extracted"] == "8"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_countdown_rows(tmp_path: Path) -> None:
    reference = {"numbers": [3, 7, 25], "target": 46}
    source = write(tmp_path / "in.jsonl", [row(i, f"<answer>25+3*{7 + i}</answer>", reference) for i in range(3)])
    assert score_file("countdown", source, tmp_path / "out.jsonl", workers=2) == {"correct": 1, "wrong": 2}


def test_many_rows_in_order(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row(i, f"\\boxed{{{i % 10}}}") for i in range(3000)])
    counts = score_file("math", source, tmp_path / "out.jsonl", workers=2)
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [r["id"] for r in out] == list(range(3000))
    assert counts == {"correct": 300, "wrong": 2700}
    assert all((r["verdict"] == "correct") == (r["id"] % 10 == 7) for r in out)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "line 2: not a JSON object"),
        ("[1]", "line 2: expected a JSON object, found list"),
        ("[" * 100_000, "line 2: not a JSON object"),
    ],
)
def test_a_line_that_is_no_object_names_file_and_line(tmp_path: Path, bad: object, message: str) -> None:
    source = write(tmp_path / "in.jsonl", [row("a", "\\boxed{7}"), bad])
    with pytest.raises(UsageError) as caught:
        score_file("math", source, tmp_path / "out.jsonl")
    assert str(source) in str(caught.value)
    assert message in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


UNUSABLE = [
    ({"response": "7", "reference": "7"}, "line 2: missing 'id'; it has: 'response', 'reference'"),
    ({"id": 1}, "line 2: missing 'response', 'reference'; it has: 'id'"),
    ({"id": 1, "response": None, "reference": "7"}, "line 2: 'response' must be text, found NoneType"),
    ({"id": 1, "response": "", "reference": 7}, "line 2: 'reference' must be text, a list of texts or an object"),
    ({"id": 1, "response": "", "reference": []}, "line 2: 'reference' must be"),
]


@pytest.mark.parametrize(("bad", "reason"), UNUSABLE)
def test_a_row_that_cannot_be_used_costs_itself(tmp_path: Path, bad: dict[str, object], reason: str) -> None:
    source = write(tmp_path / "in.jsonl", [row("a", "\\boxed{7}"), bad, row("c", "\\boxed{8}"), {"id": "d"}])
    told: list[tuple[int, int | None]] = []
    counts = score_file("math", source, tmp_path / "out.jsonl", watch=lambda done, total: told.append((done, total)))
    assert counts == {"correct": 1, "unusable": 2, "wrong": 1}
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["id"], r["verdict"], r["score"]) for r in out] == [
        ("a", "correct", 1.0),
        (bad.get("id"), "broken", None),
        ("c", "wrong", 0.0),
        ("d", "broken", None),
    ]
    assert reason in out[1]["detail"]
    assert told[-1] == (4, 4)


def test_a_file_of_which_no_row_can_be_used_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row("a", "\\boxed{7}", []), {"id": 2}])
    with pytest.raises(UsageError, match=r"none of the 2 rows can be used: .*line 1: 'reference' must be"):
        score_file("math", source, tmp_path / "out.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_marked_only(tmp_path: Path) -> None:
    rows: list[object] = [
        row("a", "So there are 7."),
        row("b", "The answer is 7."),
        row("c", "So there are 7.", {"answer": "7", "marked_only": False}),
        row("d", "So there are 7.", {"answer": "7", "marked_only": "no"}),
    ]
    source = write(tmp_path / "in.jsonl", rows)
    assert score_file("math", source, tmp_path / "out.jsonl", options={"marked_only": True}) == {
        "unparsed": 1,
        "correct": 2,
        "broken": 1,
    }
    assert score_file("math", source, tmp_path / "out.jsonl") == {"correct": 3, "broken": 1}
    with pytest.raises(UsageError, match="'countdown' has no option 'marked_only'"):
        score_file("countdown", source, tmp_path / "out.jsonl", options={"marked_only": True})


def test_the_command_counts_rows_that_cannot_be_used_and_takes_marked_only(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.jsonl", [row("a", "So there are 7."), row("b", "\\boxed{7}", []), row("c", "\\boxed{7}")]
    )
    files = ["--input", str(source), "--output", str(tmp_path / "out.jsonl")]
    done = CliRunner().invoke(app, ["score", "--verifier", "math", "--marked-only", *files])
    assert done.exit_code == 0, done.output
    out = [json.loads(line)["verdict"] for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert out == ["unparsed", "broken", "correct"]
    assert "1 unparsed, 1 correct" in done.output
    assert "rows that could not be used: 1" in done.output
    done = CliRunner().invoke(app, ["score", "--verifier", "countdown", "--marked-only", *files])
    assert isinstance(done.exception, UsageError)


def test_usage_errors(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row("a", "x")])
    with pytest.raises(UsageError, match="did you mean 'math'"):
        score_file("maths", source, tmp_path / "out.jsonl")
    with pytest.raises(UsageError, match="No such file"):
        score_file("math", tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(UsageError, match="does not exist"):
        score_file("math", source, tmp_path / "none" / "out.jsonl")
    with pytest.raises(UsageError, match="workers >= 1"):
        score_file("math", source, tmp_path / "out.jsonl", workers=0)
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    with pytest.raises(UsageError, match="not UTF-8"):
        score_file("math", tmp_path / "latin.jsonl", tmp_path / "out.jsonl")


def test_an_output_that_cannot_be_is_refused_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlreason.score_file.Pool", lambda *_, **__: pytest.fail("something was scored"))
    source = write(tmp_path / "in.jsonl", [row("a", "\\boxed{7}")])
    for output, message in ((tmp_path, "is a folder"), (tmp_path / "no" / "out.jsonl", "does not exist")):
        with pytest.raises(UsageError, match=message):
            score_file("math", source, output)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row("a", "\\boxed{7}")])
    (tmp_path / "real").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real" / "out.jsonl")
    score_file("math", source, tmp_path / "link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert json.loads((tmp_path / "real" / "out.jsonl").read_text())["verdict"] == "correct"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row("a", "\\boxed{7}")])
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    score_file("math", source, pipe)
    reader.join()
    assert pipe.is_fifo()
    assert json.loads(read[0])["id"] == "a"


def test_progress_is_told(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row(i, "\\boxed{7}") for i in range(3)])
    told: list[tuple[int, int | None]] = []
    score_file("math", source, tmp_path / "out.jsonl", watch=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
