"""Rows in the layouts that other tools write: chats, nested columns, CSV, JSON, gzip, whole turns of an assistant."""

import csv
import gzip
import json
from pathlib import Path

import pytest

from rlreason.data.files import read_file
from rlreason.data.places import PassRate
from rlreason.data.prompts import PromptFormat
from rlreason.data.rows import Columns, RowFormat
from rlreason.data.source import SourceSpec, open_source
from rlreason.errors import UsageError
from rlreason.types import Message

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
TURN = "<think>two and two</think>\n**Answer.** Two plus two gives \\boxed{4}, since ..."


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("columns", [Columns(), Columns(messages="prompt")])
def test_a_prompt_that_is_a_list_of_messages(tmp_path: Path, columns: Columns) -> None:
    """TRL's conversational rows, and verl's; review/trainer.md A16."""
    path = write(tmp_path / "trl.jsonl", {"prompt": ASKED, "answer": "4"})
    (problem,) = read_file(path, RowFormat(columns=columns)).problems
    assert problem.messages == (Message(role="system", content="Be brief."), Message(role="user", content="2+2?"))
    assert (problem.prompt, problem.reference, problem.answer) == ("2+2?", "4", None)


def test_verls_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the train extra")
    from pyarrow import parquet

    row = {
        "data_source": "openai/gsm8k",
        "prompt": [ASKED[1]],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"split": "train", "index": 7},
    }
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "verl.parquet")
    form = RowFormat(columns=Columns(answer="reward_model.ground_truth", id="extra_info.index"))
    (problem,) = read_file(tmp_path / "verl.parquet", form).problems
    assert (problem.id, problem.prompt, problem.reference) == ("7", "2+2?", "4")
    # What a reward written for verl reads is still there.
    assert problem.extra["data_source"] == "openai/gsm8k"
    assert problem.extra["reward_model"] == {"style": "rule", "ground_truth": "4"}
    with pytest.raises(UsageError, match=r"row 1: no column 'reward_model\.gold' for the answer"):
        read_file(tmp_path / "verl.parquet", RowFormat(columns=Columns(answer="reward_model.gold")))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*ASKED, {"role": "assistant", "content": TURN}]},
        {"prompt": ASKED, "completion": [{"role": "assistant", "content": TURN}]},
        {"prompt": ASKED, "completion": TURN, "answer": "4"},
        {"prompt": ASKED, "solution": TURN, "answer": "4"},
        {
            "messages": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "2+2?"}],
            "completion": TURN,
        },
    ],
)
def test_the_assistants_text_is_trained_on_as_it_is_written(tmp_path: Path, row: dict[str, object]) -> None:
    """review/repro_core/q.py: everything after </think> was lost and replaced by the gold answer."""
    from rlreason.policy.tokenizer import character_tokenizer

    problem = open_source(SourceSpec(train=str(write(tmp_path / "a.jsonl", row)))).demonstrations(0, 1)[0]
    assert (problem.thought, problem.answer) == (None, TURN)
    tokenizer = character_tokenizer(TURN + "2+2?Be brief.")
    pair = PromptFormat(style="boxed").supervised(problem, tokenizer)
    trained = [token for token, mask in zip(pair.token_ids, pair.loss_mask, strict=True) if mask]
    assert tokenizer.decode(trained) == TURN + "<|end|>"
    prompt = [token for token, mask in zip(pair.token_ids, pair.loss_mask, strict=True) if not mask]
    assert tokenizer.decode(prompt) == "Be brief.2+2?"


def test_only_the_last_turn_of_a_chat_carries_loss(tmp_path: Path) -> None:
    turns = [ASKED[1], {"role": "assistant", "content": "4"}, {"role": "user", "content": "Sure?"}]
    row = {"messages": [*turns, {"role": "assistant", "content": "Yes."}]}
    (problem,) = read_file(write(tmp_path / "a.jsonl", row), RowFormat()).problems
    assert [message.content for message in problem.messages] == ["2+2?", "4", "Sure?"]
    assert (problem.answer, problem.reference) == ("Yes.", "")
    for bad in ([*turns, {"role": "assistant", "content": " "}], [turns[1]], [{"role": "tool", "content": "x"}]):
        with pytest.raises(UsageError, match=r"a\.jsonl, line 1, column 'messages': "):
            read_file(write(tmp_path / "a.jsonl", {"messages": bad}), RowFormat())


ROWS = [{"id": f"{i}", "prompt": f"{i}+1?", "answer": f"{i + 1}", "solution": f"{i},{i + 1}\n"} for i in range(5)]


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl.gz", "a.csv.gz", "a.json.gz"])
def test_other_files_give_the_same_problems(tmp_path: Path, name: str) -> None:
    wanted = read_file(write(tmp_path / "a.jsonl", *ROWS), RowFormat())
    plain = tmp_path / name.removesuffix(".gz")
    if plain.suffix == ".csv":
        with plain.open("w", newline="") as file:
            table = csv.DictWriter(file, list(ROWS[0]))
            table.writeheader()
            table.writerows(ROWS)
    elif plain.suffix == ".json":
        plain.write_text(json.dumps(ROWS))
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()))
    assert read_file(tmp_path / name, RowFormat()) == wanted
    assert open_source(SourceSpec(train=str(tmp_path / name))).train_part.is_file


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"prompt,answer\n1+1?\n", r"a\.csv, row 1: not as many cells as there are columns"),
        ("a.csv", b"prompt,answer\n1+1?,\n", r"a\.csv, row 1, column 'answer': the gold answer is empty"),
        ("a.csv", b'prompt\n"1', r"a\.csv: not readable as CSV"),
        ("a.json", b'{"prompt": "x"}', r"a\.json: holds a dict; a \.json file of problems is one list of objects"),
        (
            "a.json",
            b'{"prompt": "x"}\n{"prompt": "y"}',
            r"a\.json: not readable as JSON.*one object a line is a \.jsonl",
        ),
        ("a.json", b"[1]", r"a\.json, row 1: a int, not an object"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: not readable as gzip"),
    ],
)
def test_what_is_wrong_with_them_is_said(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_file(tmp_path / name, RowFormat())


def test_a_long_cell_of_a_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"prompt,answer,completion\n1+1?,2,{'a' * 200_000}\n")
    assert len(str(read_file(tmp_path / "a.csv", RowFormat()).problems[0].answer)) == 200_000


def test_bad_rows_are_left_out_by_choice_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(row) for row in ROWS]
    lines[1], lines[3] = json.dumps({"prompt": "x", "answer": None}), '{"prompt": '
    path.write_text("\n".join([*lines, json.dumps(ROWS[0])]))
    with pytest.raises(UsageError, match=r"a\.jsonl, line 2, column 'answer': the gold answer is empty"):
        read_file(path, RowFormat())
    table = read_file(path, RowFormat(skip_bad_rows=True))
    assert [problem.id for problem in table.problems] == ["0", "2", "4"]
    assert table.bad_rows == 3
    assert table.first_bad is not None
    assert "line 2, column 'answer'" in table.first_bad
    path.write_text("{\n[]\n")
    with pytest.raises(UsageError, match=r"none of its 2 rows can be read; the first: .*line 1: not valid JSON"):
        read_file(path, RowFormat(skip_bad_rows=True))


def test_rows_by_their_pass_rate(tmp_path: Path) -> None:
    rates = [0.0, 0.1, 0.5, 0.9, "1.0"]
    rows = [row | {"meta": {"rate": rate}} for row, rate in zip(ROWS, rates, strict=True)]
    path = write(tmp_path / "a.jsonl", *rows)
    table = read_file(path, RowFormat(pass_rate=PassRate(column="meta.rate", min=0.1, max=0.9)))
    assert ([problem.id for problem in table.problems], table.outside) == (["1", "2", "3"], 2)
    with pytest.raises(UsageError, match=r"no row's pass rate lies in the range of data\.pass_rate \(5 lie outside\)"):
        read_file(path, RowFormat(pass_rate=PassRate(column="meta.rate", min=2, max=3)))
    with pytest.raises(UsageError, match=r"line 1: no column 'rate' for the pass rate"):
        read_file(path, RowFormat(pass_rate=PassRate(column="rate")))
    write(path, ROWS[0] | {"rate": "high"})
    with pytest.raises(UsageError, match=r"line 1, column 'rate': holds 'high'; a pass rate is a number"):
        read_file(path, RowFormat(pass_rate=PassRate(column="rate")))


@pytest.mark.skipif(not (Path(__file__).parents[2] / "../shared/data").is_dir(), reason="../shared/data is not there")
def test_real_traces_and_rates() -> None:
    shared = Path(__file__).parents[2] / "../shared/data"
    traces = open_source(SourceSpec(train=str(shared / "sky_t1_traces.jsonl"), columns=Columns(completion="response")))
    rows = [json.loads(line) for line in (shared / "sky_t1_traces.jsonl").open()]
    shown = {problem.id: problem.answer for problem in traces.demonstrations(0, len(rows))}
    assert shown == {row["id"]: row["response"] for row in rows}
    rated = RowFormat(pass_rate=PassRate(column="meta.llama8b_solve_rate", min=0.05, max=0.15))
    table = read_file(shared / "bigmath_tinyv_5k.jsonl", rated)
    assert len(table.problems) + table.outside == sum(1 for _ in (shared / "bigmath_tinyv_5k.jsonl").open())
    assert table.problems
    assert table.outside
