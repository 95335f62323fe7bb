"""Hub ids through the real ``datasets``, offline: its own folder fallback, and its real offline failure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlreason.data.hub import is_hub_id, read_hub
from rlreason.data.places import AnyOf
from rlreason.data.rows import Columns, RowFormat
from rlreason.data.source import SourceSpec, open_source
from rlreason.errors import UsageError

datasets = pytest.importorskip("datasets", reason="needs the train extra")

GSM8K = RowFormat(columns=Columns(prompt="question", solution="answer"), answer_after="####")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the data set acme/sums, two splits in JSON and Parquet, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    home = tmp_path / "acme/sums"
    home.mkdir(parents=True)
    rows = [{"question": f"{i}+1", "answer": f"it is <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"} for i in range(9)]
    (home / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    (home / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[6:]))
    (home / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - {split: train, path: train.jsonl}\n"
        "  - {split: test, path: test.jsonl}\n---\n"
    )
    return home


def test_hub_ids() -> None:
    assert all(map(is_hub_id, ("openai/gsm8k", "openai/gsm8k:main", "openai/gsm8k:main:train", "a/b::test")))
    assert not any(map(is_hub_id, ("gsm8k", "a/b/c", "a/b:c:d:e", "./a/b", "a b/c")))


def test_rows_of_a_data_set(folder: Path) -> None:
    problems = read_hub("acme/sums:main:train", GSM8K, split="test", setting="data.train").problems
    assert [problem.reference for problem in problems] == ["1", "2", "3", "4", "5", "6"]
    assert (problems[1].prompt, problems[1].thought, problems[1].answer) == ("1+1", "it is 2", "2")
    assert read_hub("acme/sums", GSM8K, split="test", setting="data.train").problems[0].prompt == "6+1"


def test_a_source_from_hub_ids(folder: Path) -> None:
    source = open_source(
        SourceSpec(
            train=AnyOf(any_of=("nowhere.jsonl", "acme/sums")),
            heldout="acme/sums",
            columns=GSM8K.columns,
            answer_after="####",
        )
    )
    assert source.train_size == 6
    # The split that the id leaves open is train for training and test for held-out problems.
    assert sorted(problem.prompt for problem in source.heldout(10)) == ["6+1", "7+1", "8+1"]
    assert source.overlap == 0
    assert source.origins == ("acme/sums", "acme/sums")


def test_wrong_ids_are_named(folder: Path) -> None:
    for hub_id, reason in (
        ("acme/sums:mian:train", "BuilderConfig 'mian' not found"),
        ("acme/sums:main:dev", 'Unknown split "dev"'),
        ("acme", "is no hub id"),
    ):
        with pytest.raises(UsageError, match=reason) as raised:
            read_hub(hub_id, GSM8K, split="train", setting="data.heldout")
        assert hub_id in str(raised.value)
    with pytest.raises(
        UsageError, match=r"acme/sums:main:train, row 1: no column 'prompt' .*there are: question, answer"
    ):
        read_hub("acme/sums:main:train", RowFormat(), split="train", setting="data.train")


def test_a_hub_whose_name_does_not_resolve_is_not_asked_again_and_again(tmp_path: Path) -> None:
    code = (
        "from rlreason.data.source import SourceSpec, open_source\n"
        "open_source(SourceSpec(train='acme/absent:main:train'))"
    )
    environment = {"HF_ENDPOINT": "https://hub.invalid", "HF_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "data set 'acme/absent:main:train' can't be had from the hub: " in done.stderr.splitlines()[-1]
    assert "Retrying" not in done.stderr


def test_without_datasets_the_next_place_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """review/newcomer.md 31: a base install failed on the hub id, and did not mention the local file."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "here.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    spec = SourceSpec(train=AnyOf(any_of=("acme/sums", "here.jsonl")), base=tmp_path)
    assert open_source(spec).train(0, 1)[0].prompt == "1+1"
    with pytest.raises(UsageError, match=r"no data file 'gone\.jsonl'.*; and acme/sums: hub data needs datasets"):
        open_source(SourceSpec(train=AnyOf(any_of=("gone.jsonl", "acme/sums"))))


def test_offline_says_what_to_do(tmp_path: Path) -> None:
    code = (
        "from rlreason.data.source import SourceSpec, open_source\n"
        "from rlreason.data.places import AnyOf\n"
        "open_source(SourceSpec(train=AnyOf(any_of=('none.jsonl', 'acme/absent:main:train'))))"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "RLREASON_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert "data.train: no data file 'none.jsonl' (looked for none.jsonl" in last
    assert "; and data set 'acme/absent:main:train' can't be had from the hub: " in last
    assert last.endswith("; a local file can be given instead: data.train=PATH")
