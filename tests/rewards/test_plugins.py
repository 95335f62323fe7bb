"""Functions written for TRL, verl and OpenRLHF run unchanged, and a package that is installed is found by its name."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rlreason.rewards.mix import RewardMix
from rlreason.rewards.plugins import parse
from rlreason.rewards.registry import resolve
from rlreason.rewards.running import Limits, score_rows
from rlreason.types import Completion, Message, Problem, RewardResult, Verdict

ROOT = Path(__file__).parents[2]
PROBLEM = Problem(id="p1", prompt="3+4=", verifier="math", reference="7", source="sums", tags=("easy",))
CHAT = replace(PROBLEM, messages=(Message(role="system", content="Add."), Message(role="user", content="3+4=")))


def completion(text: str, tokens: Sequence[int] = (5, 6)) -> Completion:
    return Completion(prompt_ids=(1,), token_ids=tokens, sampler_logprobs=None, text=text, finish_reason="stop")


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def one(table: dict[str, object] | str, problem: Problem = PROBLEM, text: str = "7") -> RewardResult:
    return RewardMix.from_table({table: 1.0} if isinstance(table, str) else table)(problem, completion(text))


# TRL


def test_trl_is_given_the_whole_step_in_one_call(tmp_path: Path) -> None:
    """Six completions of three prompts, those of a prompt beside each other; the columns as long as they are."""
    path = write(
        tmp_path / "t.py",
        "def seen(prompts, completions, completion_ids, trainer_state, level, **kwargs):\n"
        "    assert prompts == ['a', 'a', 'b', 'b', 'c', 'c'], prompts\n"
        "    assert completions == ['0', '1', '2', '3', '4', '5']\n"
        "    assert completion_ids == [[5, 6]] * 6 and trainer_state.global_step == 0\n"
        "    assert level == [1, 1, 2, 2, None, None] and kwargs['answer'] == ['7'] * 6\n"
        "    mean = sum(map(float, completions)) / 6\n"
        "    return [float(one) - mean for one in completions]\n",
    )
    problems = [replace(PROBLEM, id=name, prompt=name, extra={"level": 1 + i} if i < 2 else {}) for i, name in
                enumerate("abc")]  # fmt: skip
    rows = [(problems[i // 2], completion(str(i))) for i in range(6)]
    results = score_rows(f"trl:{path}:seen", rows)
    assert [result.detail for result in results] == [""] * 6
    assert [result.score for result in results] == [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]


def test_trl_decides_between_text_and_chat_by_the_prompts(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.py",
        "def content(completions, prompts, **kwargs):\n    return [float(c[0]['content']) for c in completions]\n",
    )
    spec = f"trl:{path}:content"
    assert one(spec, CHAT).score == 7.0
    assert "TypeError" in one(spec).detail  # as in TRL, on a data set whose prompts are text
    assert one({spec: {"weight": 1.0, "conversational": True}}).score == 7.0
    assert one({spec: {"weight": 1.0, "conversational": False}}, CHAT).verdict is Verdict.BROKEN


def test_trl_logs_reach_parts_and_detail(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.py",
        "def logs(completions, log_extra, log_metric, **kwargs):\n"
        "    log_extra('size', [len(c) for c in completions])\n"
        "    log_extra('said', completions)\n"
        "    log_metric('share', 0.25)\n"
        "    return [0.5] * len(completions)\n",
    )
    result = one(f"trl:{path}:logs")
    assert result.parts == {"trl:t.py:logs": 0.5, "trl:t.py:logs/size": 1.0, "trl:t.py:logs/share": 0.25}
    assert result.detail == "said: 7"


FACTORY = """
class _Long:
    __name__ = "long"
    def __init__(self, most, cache): self.most, self.cache = most, cache
    def __call__(self, completion_ids, **kwargs): return [float(len(ids) - self.most) for ids in completion_ids]

def get_long(most: int, cache: int = 2):
    if cache < 0:
        raise ValueError("cache must not be negative")
    return _Long(most, cache)

def takes_nothing(): return 1

def asks(completions, nums, **kwargs): return [1.0]
def few(completions, **kwargs): return [1.0, 2.0]
def nan(completions, **kwargs): return [float("nan")]
async def later(completions, **kwargs): return [0.25 for _ in completions]
"""


def test_trl_factories_take_their_options(tmp_path: Path) -> None:
    path = write(tmp_path / "f.py", FACTORY)
    assert one({f"trl:{path}:get_long": {"weight": 1.0, "most": 5}}).score == -3.0
    with pytest.raises(ValueError, match="needs option 'most'"):
        RewardMix.from_table({f"trl:{path}:get_long": 1.0})
    with pytest.raises(ValueError, match="no option 'must': did you mean 'most'"):
        RewardMix.from_table({f"trl:{path}:get_long": {"weight": 1.0, "must": 5}})
    with pytest.raises(ValueError, match="takes no arguments"):
        resolve(f"trl:{path}:takes_nothing")
    broken = one({f"trl:{path}:get_long": {"weight": 1.0, "most": 5, "cache": -1}})
    assert "cache must not be negative" in broken.detail
    assert "column 'nums', which the data does not have (there are: answer" in one(f"trl:{path}:asks").detail
    assert "2 values for 1 completions" in one(f"trl:{path}:few").detail
    assert one(f"trl:{path}:later").score == 0.25
    nan = one({"accuracy": 1.0, f"trl:{path}:nan": 1.0})  # as None: it does not apply
    assert (nan.score, nan.parts) == (1.0, {"accuracy": 1.0})


def test_a_lazy_package_s_functions_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``trl.rewards`` is: nothing in ``vars(module)`` until it is asked for."""
    (tmp_path / "lazy_rewards.py").write_text(
        "def __getattr__(name):\n"
        "    if name != 'short': raise AttributeError(name)\n"
        "    return lambda completions, **kwargs: [0.5 for _ in completions]\n"
        "def __dir__(): return ['short']\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert one("trl:lazy_rewards:short").score == 0.5
    with pytest.raises(ValueError, match="it has: short"):
        resolve("trl:lazy_rewards:shorter")


# verl

VERL = """
def gsm8k(solution_str, ground_truth, method="strict", format_score=0.0, score=1.0):
    assert method in {"strict", "flexible"}
    return score if ground_truth in solution_str else format_score
def geo(predict_str: str, ground_truth: str, use_boxed: bool = True) -> float: return float(predict_str == ground_truth)
def verify(model_output: str, ground_truth: str, timeout: float = 30.0) -> bool: return model_output == ground_truth
def rlla(data_source, solution_str, ground_truth, extra_info, step=0): return float(data_source == "toolace")
def other(text_of_it, truth): return float(text_of_it == truth)
def default(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return (1.0 if data_source == "openai/gsm8k" and solution_str == ground_truth else 0.0, "more")
def dapo(solution_str, ground_truth, strict_box_verify=False, pause_tokens_index=None):
    right = solution_str == ground_truth
    return {"score": 1.0 if right else -1.0, "acc": right, "pred": solution_str}
def batched(data_sources, solution_strs, ground_truths, extra_infos):
    return [float(len(solution_strs)) if one else 0.0 for one in solution_strs]
def nothing(): return 1.0
"""


def test_verl_functions_of_its_own_data_sets(tmp_path: Path) -> None:
    path = write(tmp_path / "v.py", VERL)
    row = replace(PROBLEM, extra={"data_source": "openai/gsm8k", "extra_info": {"split": "train"}})
    for name in ("gsm8k", "geo", "verify", "other", "default", "dapo"):
        assert one(f"verl:{path}:{name}", row).score == 1.0, name
        assert one(f"verl:{path}:{name}", row, "8").score in {0.0, -1.0}, name
    assert one({f"verl:{path}:gsm8k": {"weight": 1.0, "score": 0.5, "method": "flexible"}}).score == 0.5
    assert one(f"verl:{path}:rlla", replace(row, extra={"data_source": "toolace"})).score == 1.0
    assert one(f"verl:{path}:dapo", row).extracted == "7"
    assert [r.score for r in score_rows(f"verl:{path}:batched", [(row, completion(t)) for t in "78"])] == [2.0, 2.0]
    with pytest.raises(ValueError, match="no option 'methd': did you mean 'method'"):
        RewardMix.from_table({f"verl:{path}:gsm8k": {"weight": 1.0, "methd": "strict"}})
    with pytest.raises(ValueError, match="no argument for the response"):
        resolve(f"verl:{path}:nothing")


def test_a_file_s_relative_imports_find_the_files_beside_it(tmp_path: Path) -> None:
    """As in verl's reward_score/math_batch.py; the folder's __init__.py is not run for it."""
    write(tmp_path / "__init__.py", "raise RuntimeError('the whole framework')\n")
    write(tmp_path / "parts.py", "def same(a, b): return float(a == b)\n")
    path = write(
        tmp_path / "batch.py", "from .parts import same\ndef compute_score(solution_str, ground_truth): "
        "return same(solution_str, ground_truth)\n",
    )  # fmt: skip
    assert one(f"verl:{path}:compute_score").score == 1.0


# OpenRLHF


def test_openrlhf_functions(tmp_path: Path) -> None:
    path = write(
        tmp_path / "o.py",
        "import numpy as np\n"
        "def reward_func(queries, prompts, labels):\n"
        "    return np.array([[float(q == p + l)] for q, p, l in zip(queries, prompts, labels)])\n"
        "def full(queries, prompts, labels, **kwargs):\n"
        "    return {'rewards': [1.0] * len(queries), 'scores': [0.5] * len(queries),\n"
        "            'extra_logs': {'size': [len(q) for q in queries]}}\n"
        "def bad(solution): return 1\n",
    )
    assert one(f"openrlhf:{path}:reward_func").score == 1.0
    assert one(f"openrlhf:{path}:reward_func", text="8").score == 0.0
    assert one(f"openrlhf:{path}:full").parts["openrlhf:o.py:full/size"] == 5.0
    with pytest.raises(ValueError, match=r"takes \(queries, prompts, labels\)"):
        resolve(f"openrlhf:{path}:bad")


def test_a_function_of_another_framework_without_its_name_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.py",
        "def trl(prompts, completions, **kwargs): return [1.0]\n"
        "def verl(data_source, solution_str, ground_truth): return 1.0\n"
        "def one(problem): return 1.0\n"
        "def three(problem, completion, limit): return 1.0\n"
        "def many(problem, completions, *, verdict): return [1.0]\n",
    )
    with pytest.raises(ValueError, match="is 'verdicts', not 'verdict'"):
        resolve(f"{path}:many")
    for name, hint in (("trl", "named trl:"), ("verl", "named verl:"), ("one", "takes"), ("three", "after a")):
        with pytest.raises(ValueError, match="a reward takes") as caught:
            resolve(f"{path}:{name}")
        assert hint in str(caught.value)


# names


def test_names_say_what_they_are() -> None:
    assert parse("http:http://host:8000/score").label == "http:host:8000/score"
    assert parse("https://host/score").spec == "http:https://host/score"
    assert parse("rm:models/judge").label == "rm:judge"
    assert parse("rm:models/judge").is_folder
    for wrong, message in (("http:", "expected http:URL"), ("http://me:pw@host/x", "password"), ("rm:", "rm:FOLDER")):
        with pytest.raises(ValueError, match=message):
            parse(wrong)


def test_an_installed_package_s_reward_is_found_by_its_name(tmp_path: Path) -> None:
    """docs/examples/reward_package, installed by pip into a folder of its own and named in a recipe as ``brevity``."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    source = tmp_path / "source"
    source.mkdir()
    for file in (ROOT / "docs" / "examples" / "reward_package").iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    subprocess.run(
        [*pip, "--target", str(tmp_path / "site"), str(source)], check=True, capture_output=True, timeout=120
    )
    code = (
        f"import sys, json; sys.path[:0] = [{str(tmp_path / 'site')!r}, {str(ROOT)!r}]\n"
        "from rlreason.rewards import listing, running\n"
        "from rlreason.types import Completion, Problem\n"
        "problem = Problem(id='p', prompt='', verifier='math', reference='7')\n"
        "table = {'brevity': {'weight': 2.0, 'words': 4}}\n"
        "found = running.score_rows(table, [(problem, Completion.from_text('one two'))])\n"
        "print(json.dumps([found[0].score, found[0].detail, *listing.description('brevity')]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    score, detail, *said = json.loads(done.stdout)
    assert (score, detail) == (1.0, "")
    assert said[0] == "brevity: a reward, from rlreason-brevity (rlreason_brevity:brevity)"
    assert "limits    2 s a completion" in said


def test_limits_of_a_run_reach_a_plug_in(tmp_path: Path) -> None:
    path = write(tmp_path / "s.py", "import time\ndef nap(problem, completion):\n    time.sleep(60)\n")
    (result,) = score_rows({f"{path}:nap": {"weight": 1.0, "seconds": 0.3}}, [(PROBLEM, completion("7"))], Limits())
    assert (result.verdict, result.detail) == (Verdict.TIMED_OUT, "ran past 0.3 s")
