"""Names, plug-ins, options: what a recipe's [reward] table may say and how it is told off."""

from dataclasses import replace
from pathlib import Path

import pytest

from rlreason.rewards import registry
from rlreason.rewards.mix import RewardMix
from rlreason.types import Completion, Problem, RewardResult, Verdict

PROBLEM = Problem(id="p1", prompt="3+4=", verifier="math", reference="7", source="sums", tags=("easy",))
COMPLETION = Completion(
    prompt_ids=(1,), token_ids=(5, 6), sampler_logprobs=None, text="<answer>7</answer>", finish_reason="stop"
)


def test_shipped_names() -> None:
    assert {"accuracy", "format", "language", "length", "overlong", "repetition"} <= set(registry.reward_names())
    assert {"math", "countdown"} <= set(registry.verifier_names())


@pytest.mark.parametrize("name", ["acuracy", "Format", "nothing-like-it"])
def test_unknown_name_lists_all(name: str) -> None:
    with pytest.raises(ValueError, match="unknown reward") as caught:
        registry.resolve(name)
    # Other tests may have registered more by loading a plug-in.
    assert f"allowed: {', '.join(registry.reward_names())}; or" in str(caught.value)
    assert ("did you mean" in str(caught.value)) == (name != "nothing-like-it")


def test_unknown_verifier_names_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'math'"):
        registry.resolve_verifier("maths")
    with pytest.raises(ValueError, match="no verifier"):
        registry.resolve_verifier("format")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "empty"),
        ({"format": "much"}, "weight must be a number"),
        ({"format": True}, "weight must be a number"),
        ({"format": float("nan")}, "weight must be a number"),
        ({"overlong": {"max_tokens": 5}}, "no weight"),
        ({"overlong": {"weight": 1, "max_tokens": 5}}, "needs option 'buffer'"),
        ({"format": {"weight": 1, "stile": "tags"}}, "no option 'stile': did you mean 'style'"),
        ({"length": {"weight": 1, "max_tokens": 5, "verdict": "correct"}}, "no option 'verdict'"),
        ({"fromat": 1.0}, "did you mean 'format'"),
        ({"overlong": {"weight": 1, "max_tokens": "5", "buffer": 2}}, "'max_tokens' must be a whole number, not '5'"),
        ({"overlong": {"weight": 1, "max_tokens": 5, "buffer": True}}, "'buffer' must be a whole number, not True"),
        ({"overlong": {"weight": 1, "max_tokens": 5.5, "buffer": 2}}, "'max_tokens' must be a whole number"),
        ({"language": {"weight": 1, "target": 3}}, "'target' must be text, not 3"),
        ({"format": {"weight": 1, "style": "xml"}}, "'style' must be one of 'tags', 'boxed'"),
    ],
)
def test_table_errors(table: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardMix.from_table(table)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="already"):

        @registry.reward("format")
        def other(problem: Problem, completion: Completion) -> float:
            return 1.0


def _write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_file_plugin(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "mine.py", "def short(problem, completion, *, limit=3):\n    return len(completion.text) < limit\n"
    )
    mix = RewardMix.from_table({f"{path}:short": {"weight": 2.0, "limit": 50}})
    assert mix(PROBLEM, COMPLETION).score == 2.0
    assert mix(PROBLEM, COMPLETION).verdict is Verdict.CORRECT
    with pytest.raises(ValueError, match="no option 'limmit': did you mean 'limit'"):
        RewardMix.from_table({f"{path}:short": {"weight": 2.0, "limmit": 50}})


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("def a(): ...\n", "b", "it has: a"),
        ("b = 3\n", "b", "not a function"),
        ("import nowhere_at_all\n", "b", "did not import: ModuleNotFoundError"),
        ("def b(:\n", "b", "SyntaxError"),
    ],
)
def test_file_plugin_errors(tmp_path: Path, text: str, target: str, message: str) -> None:
    path = _write(tmp_path / "mine.py", text)
    with pytest.raises(ValueError, match=message):
        registry.resolve(f"{path}:{target}")


def test_missing_places() -> None:
    with pytest.raises(ValueError, match="does not exist"):
        registry.resolve("no/such/file.py:fn")
    with pytest.raises(ValueError, match="did not import"):
        registry.resolve("no_such_package.mod:fn")


def test_module_plugin() -> None:
    assert registry.resolve("rlreason.rewards.shape:overlong").options == {"max_tokens", "buffer"}


TRL = """
def reward(completions, answer, completion_ids, **kwargs):
    assert kwargs["prompts"] == ["3+4="] and completion_ids == [[5, 6]]
    return [1.0 if a in c else None for c, a in zip(completions, answer)]

def strict(prompts, completions):
    return [0.25 for _ in completions]

async def slow(prompts, completions, **kwargs):
    return [0.5]
"""


def test_trl_reward_runs_unchanged(tmp_path: Path) -> None:
    path = _write(tmp_path / "for_trl.py", TRL)
    mix = RewardMix.from_table({f"trl:{path}:reward": 1.0, f"trl:{path}:strict": 1.0, f"trl:{path}:slow": 1.0})
    assert mix(PROBLEM, COMPLETION).score == 1.75


VERL = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "sums" and extra_info["index"] == "p1"
    return {"score": 1.0 if ground_truth in solution_str else -1.0, "acc": ground_truth in solution_str, "pred": "7"}

def plain(data_source, solution_str, ground_truth):
    return -1.0
"""


def test_columns_of_the_row_reach_functions_of_trl_and_verl(tmp_path: Path) -> None:
    """Countdown's ``nums`` for TRL; the row's own ``data_source``, on which verl dispatches, and ``extra_info``."""
    path = _write(
        tmp_path / "columns.py",
        "def trl(completions, nums, **kwargs): return [float(sum(one) == 6) for one in nums]\n"
        "def verl(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return float((data_source, extra_info['index'], extra_info['split']) == ('openai/gsm8k', 3, 'train'))\n",
    )
    extra = {"nums": [1, 2, 3], "data_source": "openai/gsm8k", "extra_info": {"index": 3, "split": "train"}}
    problem = replace(PROBLEM, extra=extra)
    for spec in (f"trl:{path}:trl", f"verl:{path}:verl"):
        assert RewardMix.from_table({spec: 1.0})(problem, COMPLETION).score == 1.0
        assert RewardMix.from_table({spec: 1.0})(PROBLEM, COMPLETION).score != 1.0


def test_verl_score_runs_unchanged(tmp_path: Path) -> None:
    path = _write(tmp_path / "for_verl.py", VERL)
    result = RewardMix.from_table({f"verl:{path}:compute_score": 1.0})(PROBLEM, COMPLETION)
    assert (result.score, result.verdict, result.extracted) == (1.0, Verdict.CORRECT, "7")
    assert RewardMix.from_table({f"verl:{path}:plain": 1.0})(PROBLEM, COMPLETION).verdict is Verdict.WRONG


def test_plugin_as_verifier(tmp_path: Path) -> None:
    path = _write(tmp_path / "check.py", "def seven(problem, completion):\n    return '7' in completion.text\n")
    problem = Problem(id="p", prompt="", verifier=f"{path}:seven", reference="7")
    result = RewardMix.from_table({"accuracy": 1.0})(problem, COMPLETION)
    assert isinstance(result, RewardResult)
    assert result.verdict is Verdict.CORRECT
