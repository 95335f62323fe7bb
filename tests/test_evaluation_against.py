"""`rlreason eval A B`, `--against C`: what is measured, the verdict, its files and page; a server killed half-way."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from servers import chat_answer, fake_server, vllm_server

from rlreason.config import PolicyConfig
from rlreason.errors import UsageError
from rlreason.eval.verdict import Contender, judge, sentence
from rlreason.evaluation import EvalRequest
from rlreason.evaluation.against import Outcome, evaluate_all
from rlreason.policy.policies import fresh_policy

#: Problems i in 0..79, "i+1=": which of them each model of the server below gets right.
RIGHT = {
    "even": lambda i: i % 2 == 0,
    "most": lambda i: i % 4 != 3 or i == 3,
    "like-even": lambda i: i % 2 == 0 or i == 1,
}


def answer_of(path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, dict[str, str], object]:
    found = re.search(r"(\d+)\+1=", body["messages"][-1]["content"])
    assert found is not None
    number = int(found[1])
    right = RIGHT[body["model"]](number)
    return 200, {}, chat_answer(f"It is \\boxed{{{number + 1 if right else 'no idea'}}}")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_server(answer_of) as found:
        yield found


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{i}+1=", "answer": str(i + 1), "id": f"sum-{i}"} for i in range(80)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def outcome(url: str, sums: Path, *models: str, **more: Any) -> Outcome:
    against = more.pop("against", None)
    request = EvalRequest(model=models[0], url=url, data=str(sums), suites=("heldout",), workers=1, **more)
    return evaluate_all(request, models[1:], against, Console(quiet=True))


def test_the_better_model_is_named_with_its_numbers(url: str, sums: Path, tmp_path: Path) -> None:
    found = outcome(url, sums, "even", "most", out=tmp_path / "out")
    (one,) = found.comparisons
    # even: 40 of 80; most: 61 of 80, of which 21 are odd; every other one is the same
    assert (one.paired.first, one.paired.second) == (0.5, 61 / 80)
    assert (one.paired.better, one.paired.worse, one.called) == (21, 0, True)
    (text,) = found.verdict
    assert text.startswith("most is better than even by 26.2 points on heldout, 95 % ")
    assert "on 80 problems (21 problems better, 0 worse; p = 1e-06)" in text
    (row,) = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert row["verdict"] == text
    lines = [json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()]
    assert len(lines) == 80
    assert {line["problem"]: line for line in lines}["sum-1"]["of_second"] == [1, 1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "1-even", "2-most", "comparison.json", "problems.jsonl", "report.html",
    ]  # fmt: skip
    page = (tmp_path / "out" / "report.html").read_text()
    assert text.replace("'", "&#39;") in page
    assert page.count("<details>") == 22  # 21 flips and the table
    assert "sum-41" in page
    assert "<svg" in page


def test_against_is_compared_with_each_and_small_differences_are_not_called(url: str, sums: Path) -> None:
    found = outcome(url, sums, "even", "like-even", against="most")
    assert [(one.first.model, one.second.model) for one in found.comparisons] == [
        ("even", "most"),
        ("like-even", "most"),
    ]
    found = outcome(url, sums, "even", "like-even")
    (one,) = found.comparisons
    assert not one.called
    (text,) = found.verdict
    # one problem differs: six of 80 in one direction are the least that any exact test calls
    assert text.startswith("On heldout nothing can be said below 7.5 points: like-even has +1.2 points against even")


def test_against_a_folder_of_results(url: str, sums: Path, tmp_path: Path) -> None:
    outcome(url, sums, "even", out=tmp_path / "before")
    found = outcome(url, sums, "most", against=str(tmp_path / "before"))
    (one,) = found.comparisons
    assert one.second.model == f"even ({tmp_path / 'before'})"
    assert one.paired.gain.value == pytest.approx(-21 / 80)
    assert found.verdict[0].startswith("most is better than even (")
    with pytest.raises(UsageError, match="no results of suite 'gsm8k' there"):
        evaluate_all(EvalRequest(model="most", url=url, suites=("gsm8k",)), (), str(tmp_path / "before"))


def test_a_comparison_says_what_else_was_not_alike(url: str, sums: Path, tmp_path: Path) -> None:
    outcome(url, sums, "even", out=tmp_path / "before", chat_template_kwargs={"thinking": False})
    said = io.StringIO()
    for options in ({}, {"chat_template_kwargs": {"thinking": False}}):
        request = EvalRequest(model="most", url=url, data=str(sums), suites=("heldout",), workers=1, **options)
        evaluate_all(request, (), str(tmp_path / "before"), Console(file=said, width=500))
    (line,) = (line for line in said.getvalue().splitlines() if "asked otherwise" in line)
    assert line.startswith(
        f"heldout: most and even ({tmp_path / 'before'}) were asked otherwise: chat_template_kwargs {{}}"
    )


def test_a_model_is_not_compared_with_itself(url: str, sums: Path) -> None:
    with pytest.raises(UsageError, match="even is named twice"):
        outcome(url, sums, "even", against="even")


def test_what_is_done_is_not_asked_again(sums: Path, tmp_path: Path) -> None:
    """The same command on finished results asks nobody, and says the same; a changed option asks again."""
    asked = 0

    def counting(path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, dict[str, str], object]:
        nonlocal asked
        asked += 1
        return answer_of(path, headers, body)

    with fake_server(counting) as url:
        first = outcome(url, sums, "even", "most", out=tmp_path / "out")
        assert asked == 160
        second = outcome(url, sums, "even", "most", out=tmp_path / "out")
        assert asked == 160
        assert second.verdict == first.verdict
        assert [side.accuracy for side in second.sides] == [side.accuracy for side in first.sides]
        outcome(url, sums, "even", "most", out=tmp_path / "out", prompt_template="Well: {prompt}")
        assert asked == 320


def test_several_comparisons_are_corrected() -> None:
    """Three suites, one of them with p = 0.04: alone it is called, among three it is not."""
    same = {str(i): (i % 2, 1) for i in range(40)}
    other = {**same, **{str(i): (1, 1) for i in range(0, 12, 2)}}  # six problems better: p = 2/2**6 = 0.03125
    pairs = [(suite, Contender(model="a", counts=same), Contender(model="b", counts=other if suite == "x" else same))
             for suite in ("x", "y", "z")]  # fmt: skip
    (alone,) = judge(pairs[:1])
    assert (alone.called, alone.p) == (True, 0.03125)
    x, *_ = judge(pairs)
    assert (x.called, x.p, x.family) == (False, 0.09375, 3)
    assert "corrected for 3 comparisons" in sentence(x)
    cut = Contender(model="b", counts=other, truncated=0.4)
    assert sentence(judge([("x", pairs[0][1], cut)])[0]).endswith("40% of b's answers were cut off at max_tokens")


def rlreason(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rlreason", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "intermediate_size": 64, "max_position_embeddings": 256,
}  # fmt: skip
OWN = """
name = "thirds"
data = "thirds.jsonl"
answer_style = "tags"
max_tokens = 12
samples = 2
temperature = 1.0
"""


def whole_results(folder: Path) -> list[object]:
    found: list[object] = []
    for suite in ("arithmetic", "countdown", "thirds"):
        row = json.loads((folder / f"{suite}.json").read_text())
        found.append({key: value for key, value in row.items() if key != "key"})
        for line in (folder / f"{suite}.completions.jsonl").read_text().splitlines():
            group = json.loads(line)
            for one in group["completions"]:
                del one["reward"]["seconds"]
            found.append(group)
    return found


@pytest.mark.slow
def test_a_vllm_server_on_three_suites_killed_half_way_and_resumed_gives_the_same(tmp_path: Path) -> None:
    alphabet = "0123456789+-*/()=; abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:'[]"
    policy = fresh_policy(PolicyConfig(model_type="qwen3", model=SHAPE), alphabet, (), 0, torch.device("cpu"))
    (tmp_path / "ours.toml").write_text(OWN)
    rows = [json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) for i in range(60)]
    (tmp_path / "thirds.jsonl").write_text("\n".join(rows) + "\n")
    with vllm_server(policy, tmp_path) as (url, folder):
        command = [
            "eval",
            "tiny",
            "--url",
            url,
            "--tokenizer",
            str(folder),
            "--suite",
            "arithmetic,countdown,ours.toml",
        ]
        command += ["--problems", "60", "--max-tokens", "12"]
        whole = rlreason(tmp_path, *command, "--out", "whole")
        output, _ = whole.communicate(timeout=300)
        assert whole.returncode == 0, output
        killed = rlreason(tmp_path, *command, "--out", "killed")
        while not (journals := list((tmp_path / "killed").glob(".countdown-*.journal"))) or (
            journals[0].read_bytes().count(b"\n") < 15
        ):
            assert killed.poll() is None, killed.communicate()[0]
            time.sleep(0.002)
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=60)
        assert 15 <= journals[0].read_bytes().count(b"\n") < 60
        assert not (tmp_path / "killed" / "thirds.json").exists()
        resumed = rlreason(tmp_path, *command, "--out", "killed")
        output, _ = resumed.communicate(timeout=300)
        assert resumed.returncode == 0, output
        assert "arithmetic: as measured before" in output
    assert whole_results(tmp_path / "killed") == whole_results(tmp_path / "whole")


def test_two_models_in_one_command(tmp_path: Path) -> None:
    """Two folders, the transformers engine: both are drawn from, and the verdict is on the last line but one."""
    for seed in (0, 1):
        policy = fresh_policy(
            PolicyConfig(model_type="qwen3", model=SHAPE), "0123456789+-=; ", (), seed, torch.device("cpu")
        )
        policy.save(tmp_path / f"m{seed}")
    done = rlreason(
        tmp_path, "eval", "m0", "m1", "--suite", "arithmetic", "--problems", "12", "--max-tokens", "4", "--out", "out"
    )
    output, _ = done.communicate(timeout=120)
    assert done.returncode == 0, output
    assert "On arithmetic nothing can be said below 50.0 points: m1 has +0.0 points against m0" in output
    assert output.splitlines()[-1] == "page: out/report.html"
    texts = [(tmp_path / "out" / name / "arithmetic.completions.jsonl").read_text() for name in ("1-m0", "2-m1")]
    assert texts[0] != texts[1]
