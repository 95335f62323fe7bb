"""A reward tried on rows of a file and on what a run has stored: ``score --reward``, ``rescore``, ``rewards``."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlreason.cli import app
from rlreason.errors import UsageError
from rlreason.reward_rows import rows_of_file, rows_of_run
from rlreason.reward_trials import compare, options_of, rank_correlation, reward_of, score_rows
from rlreason.rewards.running import Limits
from rlreason.types import RewardResult, Verdict

PLUGIN = '''
def size(problem, completion, *, limit=10):
    """Share of the limit that is used."""
    return len(completion.token_ids) / limit

def rank(problem, completions):
    order = sorted(len(one.response) for one in completions)
    return [order.index(len(one.response)) for one in completions]

def level(problem, completion):
    return float(problem.extra["level"]) + completion.finish_reason.count("length")
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN, encoding="utf-8")
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def rollout(step: int, name: str, sample: int, response: str, score: float | None, **more: Any) -> dict[str, Any]:
    verified = "correct" if "7" in response else "wrong"
    return {
        "step": step, "group_id": f"grpo/{step}/{name}", "problem_id": name, "prompt": "3+4=", "reference": "7",
        "sample": sample, "response": response, "verdict": verified, "verified": verified, "score": score,
        "tokens": 4, "finish_reason": "stop", "parts": {}, "detail": "", "extra": {"level": 2},
    } | more  # fmt: skip


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (done.exception, done.output)
    return done.output


def test_score_gives_a_reward_the_tokens(place: Path) -> None:
    """As many as the row says, or one for each word: README's own reward is not 1 on everything."""
    write(place / "in.jsonl", [{"id": "a", "response": "one two three"}, {"id": "b", "response": "one", "tokens": 8}])
    said = invoke("score", "--reward", "mine.py:size", "--input", "in.jsonl", "--output", "out.jsonl")
    out = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["score"]) for row in out] == [("a", 0.3), ("b", 0.8)]
    assert out[0]["parts"] == {"mine.py:size": 0.3}
    assert list(out[0]) == ["id", "verdict", "score", "extracted", "seconds", "detail", "parts"]
    assert "mean score 0.55 over 2 of 2 rows" in said
    assert "one for each word" in said
    invoke("score", "--reward", "mine.py:size", "--option", "limit=4", "--input", "in.jsonl", "--output", "out.jsonl")
    assert json.loads((place / "out.jsonl").read_text().splitlines()[1])["score"] == 2.0


def test_score_counts_tokens_with_a_tokenizer(place: Path) -> None:
    pytest.importorskip("transformers")
    from rlreason.policy.tokenizer import character_tokenizer

    character_tokenizer("one tw").save_pretrained(place / "letters")
    write(place / "in.jsonl", [{"id": "a", "response": "one two"}])
    said = invoke(
        "score", "--reward", "mine.py:size", "--tokenizer", "letters", "--input", "in.jsonl", "--output", "out.jsonl"
    )
    assert json.loads((place / "out.jsonl").read_text())["score"] == 0.7
    assert "token" not in said


def test_score_of_rows_in_groups_with_columns(place: Path) -> None:
    rows = [
        {"id": i, "response": "x" * size, "group": name, "level": 3, "finish_reason": "length"}
        for i, (name, size) in enumerate([("a", 3), ("a", 1), ("b", 5), ("b", 9), ("b", 7)])
    ]
    found = rows_of_file(write(place / "in.jsonl", rows), None).rows
    mix, verifier = reward_of("mine.py:rank", {})
    assert [one.score for one in score_rows(mix, verifier, found, Limits(), lambda *_: None)] == [1, 0, 0, 2, 1]
    mix, verifier = reward_of("mine.py:level", {})
    assert {one.score for one in score_rows(mix, verifier, found, Limits(), lambda *_: None)} == {4.0}


def test_score_says_what_it_needs(place: Path) -> None:
    write(place / "in.jsonl", [{"id": "a", "response": "7", "reference": "7"}])
    files = ("--input", "in.jsonl", "--output", "out.jsonl")
    for arguments, message in (
        ((), "needs --verifier NAME or --reward NAME"),
        (("--verifier", "math", "--reward", "format"), "one of the two"),
        (("--reward", "fromat"), "did you mean 'format'"),
        (("--reward", "format", "--option", "stile=tags"), "did you mean 'style'"),
        (("--reward", "format", "--option", "style"), "write name=value"),
        (("--reward", "overlong"), "needs option"),
    ):
        done = CliRunner().invoke(app, ["score", *arguments, *files])
        assert isinstance(done.exception, UsageError), arguments
        assert message in str(done.exception), arguments
    assert not (place / "out.jsonl").exists()
    invoke("score", "--reward", "math", *files)
    assert json.loads((place / "out.jsonl").read_text())["verdict"] == "correct"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 1}, "needs 'response'"),
        ({"response": "a", "reference": [1]}, "'reference' must be"),
        ({"response": "a", "messages": "hello"}, "'messages' must be a list"),
        ({"response": "a", "tokens": "many"}, "'tokens' must be a number"),
    ],
)
def test_a_row_that_can_t_be_read_is_named(place: Path, row: dict[str, Any], message: str) -> None:
    path = write(place / "in.jsonl", [{"response": "fine"}, row])
    with pytest.raises(UsageError, match=message) as caught:
        rows_of_file(path, None)
    assert f"{path}, line 2" in str(caught.value)


def test_rescore_compares_with_what_the_run_gave(place: Path) -> None:
    """Four completions, by hand: the run's scores 1, 0, 1, 0; ``rank`` gives 1, 0 and 0, 1. Two of four agree."""
    first = [rollout(0, "p", 0, "is 7", 1.0), rollout(0, "p", 1, "is", 0.0)]
    second = [rollout(1, "q", 0, "7", 1.0), rollout(1, "q", 1, "nine", 0.0), rollout(1, "q", 2, "nothing", None)]
    write(place / "run" / "stages" / "01-grpo" / "rollouts.jsonl", first)
    write(place / "run" / "stages" / "02-more" / "rollouts.jsonl.gz", second)
    said = invoke("rescore", "run", "--reward", "mine.py:rank", "--out", "new.jsonl")
    assert "5 completions, 4 with both scores" in said
    assert "run 0.5   mine.py:rank 0.5" in said
    assert "rank correlation 0.000 (Spearman)" in said
    assert "same verdict    50.0% (right: verified" in said
    assert "1 wrong -> right, 1 right -> wrong" in said
    assert "token ids are not stored" in said
    assert [json.loads(line)["score"] for line in (place / "new.jsonl").read_text().splitlines()] == [1, 0, 0, 1, 2]
    assert "2 completions" in invoke("rescore", "run:grpo", "--reward", "math")
    assert {row.step for row in rows_of_run("run", None).rows} == {"grpo/0", "more/1"}
    with pytest.raises(UsageError, match="no stored rollouts of a stage 'gpro'; did you mean 'grpo'"):
        rows_of_run("run:gpro", None)
    with pytest.raises(UsageError, match="no run directory"):
        rows_of_run("nowhere", None)


def test_what_has_no_score_is_said(place: Path) -> None:
    rows = rows_of_file(write(place / "rollouts.jsonl", [rollout(0, "p", i, "7", 1.0) for i in range(3)]), None)
    broken = RewardResult(score=None, verdict=Verdict.BROKEN, detail="mine.py:f: KeyError")
    right = RewardResult(score=0.5, verdict=Verdict.CORRECT)
    found = compare(rows.rows, [right, broken, right])
    assert (found.both, found.failed, found.reason) == (2, 1, "mine.py:f: KeyError")
    assert found.agreement == 1.0
    assert math.isnan(found.rank_correlation)  # equal scores have no order
    assert math.isnan(compare(rows.rows, [broken] * 3).new_mean)


def test_rank_correlation_by_hand() -> None:
    """Ranks 0, 1.5, 1.5, 3 and 0, 1, 2, 3: 4.5 / sqrt(4.5 · 5)."""
    assert rank_correlation([1, 2, 2, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5.0))
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 2, 3], [10, 200, 3000]) == pytest.approx(1.0)


def test_options_are_read_as_json_or_text() -> None:
    assert options_of(["limit=30", "style=boxed", "correct=[1.0, 0.5]", "strict=true", "url=http://a?b=c"]) == {
        "limit": 30,
        "style": "boxed",
        "correct": [1.0, 0.5],
        "strict": True,
        "url": "http://a?b=c",
    }


def test_rewards_lists_what_there_is(place: Path) -> None:
    said = invoke("rewards")
    for name in ("accuracy", "conciseness", "countdown", "format", "language", "length", "overlong", "tags"):
        assert any(line.startswith(f"{name} ") for line in said.splitlines()), name
    assert "options: style: Literal['tags', 'boxed'] = 'tags'" in said
    one = invoke("rewards", "mine.py:size")
    assert "mine.py:size: a reward, from mine.py:size" in one
    assert "options   limit = 10" in one
    assert "Share of the limit that is used." in one
    assert "all completions of a problem" in invoke("rewards", "conciseness")
    done = CliRunner().invoke(app, ["rewards", "mine.py:sise"])
    assert isinstance(done.exception, UsageError)
