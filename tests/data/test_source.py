"""Streams of a source: counted, resumable, each row once per epoch; GSM8K as real input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlreason.data.places import AnyOf
from rlreason.data.rows import Columns
from rlreason.data.source import SourceSpec, open_source
from rlreason.errors import UsageError

SHARED = Path(__file__).parents[2] / "../shared/data"


def sums(path: Path, count: int, first: int = 0) -> str:
    rows = [{"id": f"s{i}", "prompt": f"{i}+1", "answer": i + 1} for i in range(first, first + count)]
    for row in rows[::2]:
        row["solution"] = "count up"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("kind", ["file", "task"])
def test_streams_resume_anywhere(kind: str, tmp_path: Path) -> None:
    spec = SourceSpec(train=sums(tmp_path / "train.jsonl", 30) if kind == "file" else "countdown", seed=3)
    source = open_source(spec)
    for stream in (source.train, source.demonstrations):
        whole = stream(0, 100)
        assert len(whole) == 100
        assert whole == stream(0, 50) + stream(50, 50)
        # A fresh process, asked out of order, one by one.
        fresh = open_source(spec)
        again = fresh.train if stream == source.train else fresh.demonstrations
        assert [again(i, 1)[0] for i in reversed(range(100))] == whole[::-1]
    assert source.train(7, 0) == []
    with pytest.raises(ValueError, match="neither may be negative"):
        source.train(-1, 3)


def test_an_epoch_has_every_row_once(tmp_path: Path) -> None:
    path = sums(tmp_path / "train.jsonl", 30)
    source = open_source(SourceSpec(train=path))
    assert source.train_size == 30
    epochs = [[problem.id for problem in source.train(30 * epoch, 30)] for epoch in range(3)]
    everything = sorted(f"s{i}" for i in range(30))
    assert [sorted(epoch) for epoch in epochs] == [everything] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert [p.id for p in open_source(SourceSpec(train=path, seed=1)).train(0, 30)] not in epochs
    shown = source.demonstrations(0, 15)
    assert sorted(problem.id for problem in shown) == sorted(f"s{i}" for i in range(0, 30, 2))
    assert all(problem.thought and problem.answer for problem in shown)


def test_heldout_rows_are_the_same_for_every_seed(tmp_path: Path) -> None:
    train, heldout = sums(tmp_path / "train.jsonl", 30), sums(tmp_path / "test.jsonl", 20, first=25)
    sources = [open_source(SourceSpec(train=train, heldout=heldout, seed=seed)) for seed in (0, 1)]
    assert sources[0].heldout(8) == sources[1].heldout(8) == sources[0].heldout(20)[:8]
    assert len({problem.id for problem in sources[0].heldout(99)}) == 20
    # 25+1 to 29+1 are in both.
    assert sources[0].overlap == 5
    assert sources[0].origins == (train, heldout)


def test_a_task_holds_out_by_itself() -> None:
    source = open_source(SourceSpec(train="arithmetic", options={"max_terms": 3}))
    assert source.has_heldout
    assert (source.train_size, source.overlap, source.origins) == (None, 0, ("arithmetic",))
    assert source.alphabet == "0123456789+-=;"
    assert len({problem.prompt for problem in source.heldout(100)}) == 100
    assert set("".join(source.texts())) <= set(source.alphabet)


def test_a_task_can_be_tested_on_rows(tmp_path: Path) -> None:
    source = open_source(SourceSpec(train="arithmetic", heldout=sums(tmp_path / "test.jsonl", 4)))
    assert source.alphabet is None
    assert source.overlap == 0
    assert {problem.source for problem in source.heldout(4)} == {"test"}


def test_texts_are_those_of_training(tmp_path: Path) -> None:
    source = open_source(SourceSpec(train=sums(tmp_path / "a.jsonl", 2), heldout=sums(tmp_path / "b.jsonl", 2, 50)))
    assert list(source.texts()) == ["0+1", "count up", "1", "1+1"]


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = open_source(SourceSpec(train=sums(path, 5))).fingerprint()
    assert len(first) == 64
    assert open_source(SourceSpec(train=str(path), seed=9)).fingerprint() == first
    assert open_source(SourceSpec(train=str(path), heldout=str(path))).fingerprint() != first
    path.write_text(path.read_text().replace("4+1", "4 + 1"))
    assert open_source(SourceSpec(train=str(path))).fingerprint() != first
    specs = [
        SourceSpec(train="arithmetic", options=options, seed=seed) for seed in (0, 1) for options in ({}, {"growth": 9})
    ]
    assert len({open_source(spec).fingerprint() for spec in [*specs, specs[0]]}) == 4


def test_errors_name_the_setting(tmp_path: Path) -> None:
    path = sums(tmp_path / "a.jsonl", 1)
    for spec, message in (
        (SourceSpec(train="arithmatic"), "data.train='arithmatic' is neither a task .* did you mean 'arithmetic'?"),
        (
            SourceSpec(train=()),
            r"data\.train is empty; give a task \(arithmetic, countdown, python_functions, small_functions, "
            r"word_problems\), a file or a hub id",
        ),
        (SourceSpec(train=path, heldout="none.csv"), r"data\.heldout: no data file 'none\.csv'"),
        (SourceSpec(train=path, options={"growth": 1}), r"data\.options \(growth\) are options of tasks"),
        (SourceSpec(train="arithmetic", options={"grow": 1}), "unknown option 'grow'; did you mean 'growth'"),
    ):
        with pytest.raises(UsageError, match=message):
            open_source(spec)
    with pytest.raises(UsageError, match=r"no held-out problems: .*a\.jsonl brings none; set data\.heldout"):
        open_source(SourceSpec(train=path)).heldout(1)
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"prompt": "p", "answer": "1"}\n')
    with pytest.raises(UsageError, match="no row has a solution to learn from"):
        open_source(SourceSpec(train=str(bare))).demonstrations(0, 1)


def test_a_broken_file_is_not_passed_over(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{\n")
    with pytest.raises(UsageError, match=r"broken\.jsonl, line 1: not valid JSON"):
        open_source(SourceSpec(train=AnyOf(any_of=(str(broken), "arithmetic"))))
    assert open_source(SourceSpec(train=AnyOf(any_of=("none.jsonl", "arithmetic")))).origins == ("arithmetic",)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
def test_gsm8k() -> None:
    columns = Columns(prompt=("prompt", "question"), answer=("solution", "answer"), solution=("solution", "answer"))
    source = open_source(
        SourceSpec(
            train=AnyOf(any_of=("gsm8k_train.jsonl", "openai/gsm8k:main:train")),
            heldout=AnyOf(any_of=("gsm8k_test.jsonl", "openai/gsm8k:main:test")),
            columns=columns,
            answer_after="####",
            base=SHARED,
        )
    )
    assert source.train_size == 7473
    assert len(source.heldout(2000)) == 1319
    assert source.overlap == 0
    rows = source.demonstrations(0, 7473)
    assert len({row.id for row in rows}) == 7473
    golds = {row["id"]: row["answer"] for row in map(json.loads, (SHARED / "gsm8k_train.jsonl").open())}
    for row in rows:
        assert row.thought
        assert not any(mark in row.thought for mark in ("<<", ">>", "####"))
        assert row.answer == row.reference
        # The data set's own answers leave out the thousands commas of the solutions.
        assert str(row.answer).replace(",", "") == golds[row.id]


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize("name", ["math_train", "math500", "aime24", "humaneval", "mbpp_sanitized", "code_contests_80"])
def test_other_real_files_are_read(name: str) -> None:
    source = open_source(SourceSpec(train=f"{name}.jsonl", base=SHARED))
    assert source.train_size == sum(1 for _ in (SHARED / f"{name}.jsonl").open())


def test_reading_data_loads_no_heavy_package(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom rlreason.data.source import SourceSpec, open_source\nfrom rlreason.data import prompts\n"
        f"open_source(SourceSpec(train={sums(tmp_path / 'a.jsonl', 3)!r}, heldout='arithmetic')).heldout(3)\n"
        "print(sorted({'torch', 'ray', 'vllm', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
