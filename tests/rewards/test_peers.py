"""The rewards of TRL 1.16 and verl 0.9.1 give the same numbers through us as called directly, on 1,000 rows.

Needs trl, math_verify and the files of verl (its package need not import): ``pytest -m peer
tests/rewards/test_peers.py``.
"""

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rlreason.rewards.running import Limits, score_rows
from rlreason.types import Completion, Message, Problem

pytestmark = pytest.mark.peer
DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
LIMITS = Limits(workers=2, timeout=60.0, memory_mb=None)
Row = tuple[Problem, Completion]


@pytest.fixture(scope="module")
def verl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of verl's score functions, importable as ``verl.utils.reward_score`` here and in worker processes, but
    without what verl's own ``__init__`` imports (ray, tensordict)."""
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        pytest.skip("no verl here")
    root, stand_in = Path(spec.origin).parent, tmp_path_factory.mktemp("verl")
    for name in ("verl", "verl/utils"):
        (stand_in / name).mkdir()
        real = root.parent / name
        (stand_in / name / "__init__.py").write_text(f"__path__.append({str(real)!r})\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(stand_in)
        yield root / "utils" / "reward_score"


@cache
def rows(chat: bool = False) -> list[Row]:
    """1,000 solutions of GSM8K by models, right and wrong, in four forms of answer; 112 rollouts of a trained model are
    among them."""
    found: list[Row] = []
    for file in ("prime_rl_rollouts.jsonl", "gsm8k_model_solutions.jsonl"):
        if not (DATA / file).is_file():
            pytest.skip(f"no {file} in the shared data")
        for line in (DATA / file).read_text(encoding="utf-8").splitlines():
            found.append(_row(json.loads(line), len(found), chat))
            if len(found) == 1000:
                return found
    raise AssertionError(len(found))


def _row(value: dict[str, Any], number: int, chat: bool) -> Row:
    endings = ("", "\n#### {}", "\n\\boxed{{{}}}", "\nThe answer is: ${}$.")
    text = value["response"] + endings[number % 4].format(value.get("prediction", value["answer"]))
    if number % 3 == 0 and "<think>" not in text:
        text = f"<think>{text}</think> So \\boxed{{{value.get('prediction', value['answer'])}}}"
    extra = {
        "data_source": ("openai/gsm8k", "lighteval/MATH", "math_dapo")[number % 3],
        "solution": f"${value['answer']}$",
    }
    problem = Problem(
        id=f"{number}",
        prompt=value["prompt"],
        verifier="math",
        reference=value["answer"],
        messages=(Message(role="user", content=value["prompt"]),) if chat else (),
        extra=extra,
    )
    ids = [ord(one) % 97 for one in text][: 50 + number]
    completion = Completion(prompt_ids=(1,), token_ids=ids, sampler_logprobs=None, text=text, finish_reason="stop")
    return problem, completion


def same(spec: str, options: dict[str, object], of: list[Row], direct: list[float | None]) -> None:
    """Through worker processes, as in a run; None stays None. That the numbers are of more than one kind is the
    canary."""
    found = score_rows({spec: {"weight": 1.0, **options}}, of, LIMITS)
    assert [one.score for one in found] == direct, next(one.detail for one in found if one.detail)
    assert len({*direct} - {None}) > 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("accuracy_reward", {}),
        ("reasoning_accuracy_reward", {}),
        ("think_format_reward", {}),
        ("get_cosine_scaled_reward", {"max_len": 600}),
        ("get_repetition_penalty_reward", {"ngram_size": 4, "max_penalty": -0.5}),
        ("get_soft_overlong_punishment", {"max_completion_len": 700, "soft_punish_cache": 200}),
    ],
)
def test_trl(name: str, options: dict[str, object]) -> None:
    trl = pytest.importorskip("trl.rewards")
    of = rows(chat=True)
    function: Callable[..., list[float | None]] = getattr(trl, name)
    direct = (function(**options) if options else function)(
        prompts=[[{"role": "user", "content": problem.prompt}] for problem, _ in of],
        completions=[[{"role": "assistant", "content": one.response}] for _, one in of],
        completion_ids=[one.token_ids.tolist() for _, one in of],
        solution=[problem.extra["solution"] for problem, _ in of],
    )
    same(f"trl:trl.rewards:{name}", options, of, direct)


def number(value: Any) -> float:
    """As ``default_compute_score`` and the reward managers read it."""
    return float(value["score"] if isinstance(value, dict) else value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gsm8k", {}),
        ("gsm8k", {"method": "flexible", "format_score": 0.25}),
        ("math_reward", {}),
        ("math_dapo", {}),
        ("math_verify", {}),
    ],
)
def test_verl_s_functions_of_one_data_set(verl: Path, name: str, options: dict[str, object]) -> None:
    of = rows()
    function = importlib.import_module(f"verl.utils.reward_score.{name}").compute_score
    direct = [number(function(one.response, problem.reference, **options)) for problem, one in of]
    same(f"verl:verl.utils.reward_score.{name}:compute_score", options, of, direct)
    if name != "math_verify":  # it starts processes, which import it by its name
        same(f"verl:{verl / name}.py:compute_score", options, of, direct)


def test_verl_s_batch_function(verl: Path) -> None:
    of = rows()
    function = importlib.import_module("verl.utils.reward_score.math_reward").compute_score
    direct = [number(function(one.response, problem.reference)) for problem, one in of]
    same(f"verl:{verl / 'math_batch.py'}:compute_score_batched", {}, of, direct)


def test_verl_s_search_function(verl: Path) -> None:
    of = [
        (replace(problem, reference={"target": [problem.reference]}),
         replace(one, text=f"<answer>y</answer>{one.text}<answer>{problem.reference if i % 2 else 'x'}</answer>"))
        for i, (problem, one) in enumerate(rows())
    ]  # fmt: skip
    function = importlib.import_module("verl.utils.reward_score.search_r1_like_qa_em").compute_score
    direct = [number(function(one.response, problem.reference)) for problem, one in of]
    same(f"verl:{verl / 'search_r1_like_qa_em.py'}:compute_score", {}, of, direct)


def test_verl_s_default_function(verl: Path) -> None:
    """It dispatches on ``data_source``, a column of the row."""
    of = rows()
    function = importlib.import_module("verl.utils.reward_score").default_compute_score
    direct = [
        number(function(problem.extra["data_source"], one.response, problem.reference, extra_info={}))
        for problem, one in of
    ]
    same("verl:verl.utils.reward_score:default_compute_score", {}, of, direct)
    same(f"verl:{verl / '__init__.py'}:default_compute_score", {}, of, direct)
