"""The mix: sums, None, exceptions, verdicts."""

import asyncio
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from rlreason.rewards.mix import RewardMix, as_result
from rlreason.types import Completion, Problem, RewardResult, Verdict


def problem(reference: object = "7", verifier: str = "math") -> Problem:
    return Problem(id="p", prompt="3+4=", verifier=verifier, reference=reference)  # type: ignore[arg-type]


def completion(text: str, tokens: int = 10, finish: str = "stop") -> Completion:
    return Completion(
        prompt_ids=(),
        token_ids=(1,) * tokens,
        sampler_logprobs=None,
        text=text,
        prefill="<think>",
        finish_reason=finish,  # type: ignore[arg-type]
    )


RIGHT = completion("3+4=7</think><answer>7</answer>")
PLUGIN = """
async def half(problem, completion):
    return 0.5

def nothing(problem, completion):
    return None

def boom(problem, completion):
    raise KeyError("no")

def infinite(problem, completion):
    return float("inf")

def timed_out(problem, completion):
    from rlreason.types import RewardResult, Verdict
    return RewardResult(score=None, verdict=Verdict.TIMED_OUT, detail="slow")
"""


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    (tmp_path / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    return str(tmp_path / "plugin.py")


def test_weighted_sum_and_parts() -> None:
    mix = RewardMix.from_table(
        {"format": 0.1, "accuracy": 1.0, "overlong": {"weight": 0.5, "max_tokens": 12, "buffer": 4}}
    )
    result = mix(problem(), RIGHT)
    assert result.score == pytest.approx(1.0 + 0.1 - 0.5 * 0.5)
    assert result.parts == {"accuracy": 1.0, "format": 1.0, "overlong": -0.5}
    assert (result.verdict, result.extracted) == (Verdict.CORRECT, "7")
    assert result.seconds > 0


@pytest.mark.parametrize(
    ("text", "verdict", "score"),
    [
        ("so 7</think><answer>7</answer>", Verdict.CORRECT, 1.1),
        ("so 8</think><answer>8</answer>", Verdict.WRONG, 0.1),
        ("so 7</think>\\boxed{7}", Verdict.CORRECT, 1.0),
        ("so 7", Verdict.UNPARSED, 0.0),
        ("so <answer>7</answer>", Verdict.UNPARSED, 0.0),
    ],
)
def test_verdict_comes_from_accuracy(text: str, verdict: Verdict, score: float) -> None:
    result = RewardMix.from_table({"format": 0.1, "accuracy": 1.0})(problem(), completion(text))
    assert (result.verdict, result.score) == (verdict, pytest.approx(score))


def test_async_and_none(plugin: str) -> None:
    mix = RewardMix.from_table({"accuracy": 1.0, f"{plugin}:half": 1.0, f"{plugin}:nothing": 5.0})
    result = mix(problem(), RIGHT)
    assert result.score == 1.5
    assert f"{plugin}:nothing" not in result.parts

    async def inside_a_loop() -> RewardResult:
        return mix(problem(), RIGHT)

    assert asyncio.run(inside_a_loop()).score == 1.5


@pytest.mark.parametrize("bad", ["boom", "infinite"])
def test_an_exception_is_broken(plugin: str, bad: str) -> None:
    result = RewardMix.from_table({"accuracy": 1.0, f"{plugin}:{bad}": 1.0})(problem(), RIGHT)
    assert (result.score, result.verdict) == (None, Verdict.BROKEN)
    assert bad in result.detail
    assert result.extracted == "7"


def test_no_verdict_means_no_score(plugin: str) -> None:
    result = RewardMix.from_table({"accuracy": 1.0, "format": 1.0})(problem(verifier=f"{plugin}:timed_out"), RIGHT)
    assert (result.score, result.verdict, result.detail) == (None, Verdict.TIMED_OUT, "slow")
    unknown = RewardMix.from_table({"accuracy": 1.0})(problem(verifier="maths"), RIGHT)
    assert (unknown.score, unknown.verdict) == (None, Verdict.BROKEN)
    assert "did you mean 'math'" in unknown.detail
    gold = RewardMix.from_table({"accuracy": 1.0})(problem(reference=()), RIGHT)
    assert (gold.score, gold.verdict) == (None, Verdict.BROKEN)


@pytest.mark.parametrize(
    ("value", "score", "verdict"),
    [(True, 1.0, "correct"), (False, 0.0, "wrong"), (-1, -1.0, "wrong"), (None, None, "broken")],
)
def test_plain_values(value: object, score: float | None, verdict: str) -> None:
    assert (as_result(value).score, as_result(value).verdict) == (score, verdict)


def test_pickles() -> None:
    mix = RewardMix.from_table({"accuracy": 1.0, "format": {"weight": 0.1, "style": "tags"}})
    assert pickle.loads(pickle.dumps(mix)) == mix


def test_import_is_light() -> None:
    code = (
        "import sys, rlreason.rewards.mix, rlreason.rewards.registry as r, rlreason.scorer; r.reward_names()\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'sympy', 'mpmath', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60)
