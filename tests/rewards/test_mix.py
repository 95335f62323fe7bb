"""The mix: sums, None, exceptions, verdicts."""

import asyncio
import json
import pickle
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
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


def test_a_part_that_breaks_leaves_the_verifier_s_word(plugin: str) -> None:
    """An auxiliary reward that raises takes the score, not the verdict that accuracy counts."""
    result = RewardMix.from_table({f"{plugin}:boom": 0.5, "accuracy": 1.0})(problem(), RIGHT)
    assert (result.score, result.verdict, result.verified) == (None, Verdict.BROKEN, Verdict.CORRECT)
    alone = RewardMix.from_table({f"{plugin}:half": 1.0})(problem(), RIGHT)
    assert (alone.verdict, alone.verified) == (Verdict.CORRECT, None)  # no verifier was asked


def test_verification_is_the_verifier_alone(plugin: str) -> None:
    """Held-out accuracy of a policy that is wrong is 0, whatever its reward says."""
    mix = RewardMix.from_table({f"{plugin}:half": 1.0})
    assert mix(problem(), completion("8</think><answer>8</answer>")).verdict is Verdict.CORRECT
    verification = mix.verification
    assert verification(problem(), completion("8</think><answer>8</answer>")).verified is Verdict.WRONG
    assert verification(problem(), RIGHT).verified is Verdict.CORRECT
    assert verification(problem(reference=()), RIGHT).verified is None


def test_detail_says_which_plug_in_and_where(plugin: str) -> None:
    result = RewardMix.from_table({f"{plugin}:boom": 1.0})(problem(), RIGHT)
    line = PLUGIN.splitlines().index('    raise KeyError("no")') + 1
    assert result.detail == f"plugin.py:boom: KeyError: 'no' (plugin.py:{line} in boom)"


def test_where_is_the_plug_in_s_line_also_through_libraries_wrappers_and_loops(tmp_path: Path) -> None:
    (tmp_path / "deep.py").write_text(
        "import json\n\ndef parse(problem, completion):\n    return json.loads('{')\n\n"
        "async def later(problem, completion):\n    return completion.answer\n\n"
        "def trl(completions, **kwargs):\n    return completions[0]['content']\n",
        encoding="utf-8",
    )
    for spec, place in (
        ("deep.py:parse", "(deep.py:4 in parse)"),
        ("deep.py:later", "(deep.py:7 in later)"),
        ("trl:deep.py:trl", "(deep.py:10 in trl)"),
    ):
        mix = RewardMix.from_table({spec.replace("deep.py", str(tmp_path / "deep.py")): 1.0})
        assert mix(problem(), RIGHT).detail.endswith(place)

        async def inside_a_loop(mix: RewardMix = mix) -> RewardResult:
            return mix(problem(), RIGHT)

        assert asyncio.run(inside_a_loop()).detail.endswith(place)


def test_parts_of_a_plug_in_are_kept_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(
        "from rlreason.types import RewardResult, Verdict\n"
        "def both(problem, completion):\n"
        "    return RewardResult(score=0.7, verdict=Verdict.CORRECT, parts={'a': 0.5, 'b': 0.2})\n",
        encoding="utf-8",
    )
    result = RewardMix.from_table({"accuracy": 1.0, f"{tmp_path}/two.py:both": 1.0})(problem(), RIGHT)
    assert result.parts == {"accuracy": 1.0, "two.py:both": 0.7, "two.py:both/a": 0.5, "two.py:both/b": 0.2}


def test_a_part_sees_its_own_problem(tmp_path: Path) -> None:
    """The first part empties the reference; the verifier of the next completion, and the next part, see it whole."""
    (tmp_path / "mut.py").write_text(
        "def spoil(problem, completion):\n"
        "    found = len(problem.reference['numbers'])\n"
        "    problem.reference['numbers'].clear()\n"
        "    problem.reference['target'] = 0\n"
        "    return float(found)\n",
        encoding="utf-8",
    )
    asked = problem({"numbers": [3, 4], "target": 7}, verifier="countdown")
    table = {f"{tmp_path}/mut.py:spoil": 1.0, f"{tmp_path / '.' / 'mut.py'}:spoil": 1.0, "accuracy": 1.0}
    mix = RewardMix.from_table(table)
    for _ in range(2):
        result = mix(asked, completion("so</think><answer>3+4</answer>"))
        assert result.verified is Verdict.CORRECT
        assert result.score == pytest.approx(1.0 + 2.0 * (len(mix.parts) - 1))
    assert asked.reference == {"numbers": [3, 4], "target": 7}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({"score": np.float32(0.5)}, {"score": 0.5}),
        ({"extracted": 7}, {"extracted": "7"}),
        ({"extracted": "\ud800x"}, {"extracted": "\\ud800x"}),
        ({"detail": "\udfff"}, {"detail": "\\udfff"}),
        ({"parts": {"a": np.float64(1.0)}}, {"parts": {"a": 1.0}}),
        ({"verdict": "wrong"}, {"verdict": Verdict.WRONG}),
    ],
)
def test_results_are_plain_numbers_and_text(value: dict[str, object], wanted: dict[str, object]) -> None:
    """What a reward returns can be written: JSON, UTF-8."""
    given = {"score": 1.0, "verdict": Verdict.CORRECT} | value
    result = as_result(RewardResult(**given))  # type: ignore[arg-type]
    for name, expected in wanted.items():
        assert getattr(result, name) == expected
    json.dumps(asdict(result), ensure_ascii=False, allow_nan=False).encode()
    assert type(result.score) is float


@pytest.mark.parametrize("bad", [float("nan"), "a", [1], {"score": 1}])
def test_what_is_no_number_is_broken(tmp_path: Path, bad: object) -> None:
    (tmp_path / "bad.py").write_text(
        f"from math import nan\ndef bad(problem, completion):\n    return {bad!r}\n"
        "def surrogate(problem, completion):\n    raise ValueError('\\ud800')\n",
        encoding="utf-8",
    )
    result = RewardMix.from_table({f"{tmp_path}/bad.py:bad": 1.0})(problem(), RIGHT)
    assert (result.score, result.verdict) == (None, Verdict.BROKEN)
    assert "bad.py:bad" in result.detail
    result = RewardMix.from_table({f"{tmp_path}/bad.py:surrogate": 1.0})(problem(), RIGHT)
    assert "\\ud800" in result.detail
    result.detail.encode()


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
