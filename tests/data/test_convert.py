"""``rlreason data convert``: a file of a public data set in, a file of problems out, and what became of the rows."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlreason.convert import convert
from rlreason.data.code_sets.sets import CODE_SETS
from rlreason.errors import UsageError

ROOT = Path(__file__).parents[2]
FINE = {"task_id": 2, "text": "Square it.", "code": "def sq(a): return a*a", "test_list": ["assert sq(2) == 4"]}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def rlreason(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "rlreason", "data", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_bad_rows_cost_their_rows(tmp_path: Path) -> None:
    empty, other = FINE | {"test_list": []}, {"question": "2+2?"}
    source = write(tmp_path / "mbpp.jsonl", FINE, empty, '{"task_id": 3,', FINE, empty, other)
    done = rlreason("convert", "mbpp", str(source), "out.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["mbpp/2", "mbpp/2#4"]  # rows of one name are told apart
    assert done.stdout.splitlines() == [
        "wrote out.jsonl: 2 problems",
        "left out: 4",
        "  2 rows: it has no test cases (first: line 2)",
        "  1 row: not valid JSON: Expecting property name enclosed in double quotes at character 15; each line must "
        "be one whole JSON object (first: line 3)",
        "  1 row: no 'test_list' in it (columns: question) (first: line 6)",
    ]


def test_where_no_row_is_a_problem_nothing_is_written(tmp_path: Path) -> None:
    source = write(tmp_path / "gsm8k.jsonl", {"question": "2+2?", "answer": "#### 4"}, {"question": "1+1?"})
    done = rlreason("convert", "mbpp", str(source), "out.jsonl", cwd=tmp_path)
    assert done.returncode == 1
    assert "none of its 2 rows is a problem of mbpp" in done.stderr
    assert "no 'test_list' in it (columns: answer, question)" in done.stderr
    assert "wrote" not in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gsm8k.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mbp", "mbpp.jsonl", "out.jsonl"], ["no code data set 'mbp'", "did you mean 'mbpp'"]),
        (["mbpp", "nowhere.jsonl", "out.jsonl"], ["no data file 'nowhere.jsonl'"]),
        (["mbpp", "data/nowhere.jsonl", "out.jsonl"], ["no data file 'data/nowhere.jsonl'"]),
        (["mbpp", "acme/nothing", "out.jsonl"], ["'acme/nothing'", "a local file can be given"]),
        (["mbpp", "mbpp.jsonl", "out.parquet"], [".jsonl or .jsonl.gz"]),
        (["mbpp", "mbpp.jsonl", "nowhere/out.jsonl"], ["the folder", "does not exist"]),
        (["mbpp", "none.jsonl", "out.jsonl"], ["no rows in it"]),
    ],
)
def test_what_the_user_can_mend_is_exit_2(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    write(tmp_path / "mbpp.jsonl", FINE)
    write(tmp_path / "none.jsonl")
    done = rlreason("convert", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_the_list_of_sets(tmp_path: Path) -> None:
    done = rlreason(cwd=tmp_path)
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(CODE_SETS)
    lines = (ROOT / "docs" / "data.md").read_text().splitlines()
    named = {line.split("|")[1].strip(" `") for line in lines if line.startswith("| `")}
    assert set(CODE_SETS) <= named  # the table of docs/data.md has every one


def test_parquet_and_gzip(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the train extra")
    from pyarrow import parquet

    table = pyarrow.table({name: [value] for name, value in FINE.items()})
    parquet.write_table(table, tmp_path / "mbpp.parquet")
    (tmp_path / "out.jsonl.gz").write_bytes(b"old")
    found = convert("mbpp", str(tmp_path / "mbpp.parquet"), tmp_path / "out.jsonl.gz")
    assert (found.problems, found.rows_left_out) == (1, 0)
    with gzip.open(tmp_path / "out.jsonl.gz", "rt") as lines:
        assert json.loads(lines.read())["id"] == "mbpp/2"


def test_a_hub_id_reads_the_split_that_the_set_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real ``datasets`` and its own folder fallback: HumanEval has nothing but a test split."""
    datasets = pytest.importorskip("datasets", reason="needs the train extra")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "acme" / "humaneval"
    folder.mkdir(parents=True)
    row = {
        "task_id": "HumanEval/0",
        "prompt": "def f(x):\n",
        "canonical_solution": "    return x\n",
        "entry_point": "f",
    }
    write(folder / "test.jsonl", row | {"test": "def check(candidate):\n    assert candidate(1) == 1\n"})
    found = convert("humaneval", "acme/humaneval", tmp_path / "out.jsonl")
    assert (found.problems, found.rows_left_out) == (1, 0)
    assert json.loads((tmp_path / "out.jsonl").read_text())["id"] == "HumanEval/0"


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("old")
    source = write(tmp_path / "broken.json", "[{]")
    with pytest.raises(UsageError, match="not readable as JSON"):
        convert("mbpp", str(source), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
