"""The Python API: runs from a script or a notebook's cell, over the pipeline that recipes use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import rlreason
from rlreason.types import Completion, Problem, Verdict

ROOT = Path(__file__).parent.parent
TINY: dict[str, Any] = {
    "model_type": "qwen3",
    "tokenizer": {"kind": "bpe", "vocab_size": 300},
    "model": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 32,
    },
}
SUMS = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(24)]
FAST: dict[str, Any] = {"max_tokens": 8, "quiet": True, "problems_per_step": 4}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def has_e(problem: Problem, completion: Completion) -> float:
    return float("e" in completion.text)


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, rlreason; rlreason.grpo, rlreason.evaluate, rlreason.Problem; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert set(rlreason.__all__) <= set(dir(rlreason))
    with pytest.raises(AttributeError, match="no attribute 'gpro'"):
        rlreason.gpro  # noqa: B018


def test_grpo_with_a_function_of_ones_own_learns_it(tmp_path: Path) -> None:
    """Three letters in a row pay; after a few steps most completions have them. The run is a run like any other."""

    def letters(problem: Problem, completion: Completion) -> float:
        return sum(letter in "aeiou" for letter in completion.text) / 8

    result = rlreason.grpo(TINY, SUMS, reward=letters, steps=30, lr=2e-2, out="r", **FAST)
    curve = result.curve("reward/mean")
    assert len(curve) == len(result.metrics) == 30
    assert curve[-1] > 3 * curve[0] > 0  # type: ignore[operator]
    assert result.report == Path("r/report.html")
    assert result.report.exists()
    model, tokenizer = result.load()
    assert model.config.hidden_size == 32
    assert tokenizer.chat_template
    assert json.loads(Path("r/manifest.json").read_text())["stages"][0]["status"] == "done"
    with pytest.raises(rlreason.UsageError, match="did you mean 'reward/mean'"):
        result.curve("reward/men")


def test_own_model_objects_are_trained_as_copies() -> None:
    model, tokenizer = rlreason.sft(TINY, [{**row, "solution": "one more"} for row in SUMS], steps=1, quiet=True).load()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = rlreason.grpo((model, tokenizer), SUMS, reward=has_e, steps=2, lr=1e-2, **FAST)
    after, _ = result.load()
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert not all(value.equal(before[name]) for name, value in after.state_dict().items())
    assert (result.folder / "given" / "policy" / "config.json").exists()


def test_problems_without_an_answer_are_judged_by_the_reward() -> None:
    seen: list[object] = []

    def short(problem: Problem, completion: Completion) -> float:
        seen.append(problem.reference)
        return float(len(completion.text) <= problem.reference["limit"])  # type: ignore[index, call-overload]

    problems = [{"prompt": f"say {i}", "limit": 3} for i in range(8)]
    result = rlreason.grpo(TINY, problems, reward=short, steps=1, **FAST)
    assert seen[0] == {"limit": 3}
    assert result.metrics[0]["verdict/broken"] == 0
    with pytest.raises(rlreason.UsageError, match="give reward=function"):
        rlreason.grpo(TINY, problems, steps=1, **FAST)


def test_problem_objects_and_heldout_ones() -> None:
    problems = [Problem(id=f"p{i}", prompt=f"{i}+2=", verifier="math", reference=(str(i + 2),)) for i in range(8)]
    held = [{"prompt": [{"role": "user", "content": f"{i}+9="}], "answer": str(i + 9)} for i in range(5)]
    measure: dict[str, Any] = {"heldout": held, "eval_every": 1, "eval_problems": 5}
    result = rlreason.grpo(TINY, problems, reward=has_e, steps=1, **measure, **FAST)
    assert result.metrics[0]["accuracy/heldout"] == 0
    rows = [json.loads(line) for line in (result.folder / "given" / "problems.jsonl").read_text().splitlines()]
    assert rows[3] == {"id": "p3", "answer": ["5"], "prompt": "3+2="}


def test_distill_and_evaluate_and_a_result_as_model() -> None:
    def anything(problem: Problem, completion: Completion) -> float:
        return 1.0

    problems = [{"prompt": f"say {i}", "k": 1} for i in range(6)]
    keys: dict[str, Any] = {"max_tokens": 64, "samples_per_problem": 8, "batch_size": 4, "quiet": True}
    result = rlreason.distill(TINY, TINY, problems, steps=2, reward=anything, lr=1e-3, **keys)
    assert result.stage == "distilled"
    assert len(result.metrics) == 2
    report = rlreason.evaluate(result, SUMS, max_tokens=4)
    assert report.accuracy.count == 24
    assert report.model.endswith(":distilled")
    with pytest.raises(rlreason.UsageError, match="did you mean 'samples'"):
        rlreason.evaluate(result, SUMS, sample=4)


def test_a_reward_that_hangs_or_raises_has_the_verdicts_of_a_worker() -> None:
    def hangs(problem: Problem, completion: Completion) -> float:
        if problem.reference == "1":
            time.sleep(30)
        if problem.reference == "2":
            raise RuntimeError("no")
        return 1.0

    found = rlreason.score(["a", "b", "c"], ["1", "2", "3"], verifier=hangs, timeout=0.5)
    assert [one.verdict for one in found] == [Verdict.TIMED_OUT, Verdict.BROKEN, Verdict.CORRECT]
    assert "RuntimeError: no" in found[1].detail


def test_a_reward_sees_copies() -> None:
    def spoils(problem: Problem, completion: Completion) -> float:
        problem.reference["n"] += 1  # type: ignore[index]
        return float(problem.reference["n"] == 2)  # type: ignore[index]

    reference = {"n": 1}
    found = rlreason.score(["a", "a"], [reference, reference], verifier=spoils)
    assert [one.score for one in found] == [1.0, 1.0]
    assert reference == {"n": 1}


def test_a_function_of_a_module_runs_in_killable_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "import os\n"
        "def where(problem, completion):\n"
        "    open(f'pid-{os.getpid()}', 'w').close()\n"
        "    return float('e' in completion.text)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_rewards  # type: ignore[import-not-found]

    result = rlreason.grpo(TINY, SUMS, reward={"accuracy": 0.5, my_rewards.where: 1.0}, steps=1, **FAST)
    pids = {path.name for path in tmp_path.glob("pid-*")}
    assert pids
    assert f"pid-{os.getpid()}" not in pids
    assert '"my_rewards:where" = 1.0' in (result.folder / "recipe.toml").read_text()


def test_a_reward_registered_in_a_script_is_known_by_its_name(tmp_path: Path) -> None:
    """Workers can't import a script: its rewards run in a thread, also where they are given by name."""
    script = tmp_path / "script.py"
    script.write_text(
        "import rlreason\n"
        "@rlreason.reward('vowels')\n"
        "def vowels(problem, completion): return float('e' in completion.text or 'a' in completion.text)\n"
        f"result = rlreason.grpo({TINY!r}, {SUMS!r}, reward='vowels', steps=2, out='run', **{FAST!r})\n"
        "print('broken', sum(row['verdict/broken'] for row in result.metrics))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert "broken 0.0" in done.stdout, done.stdout + done.stderr


def test_two_functions_of_one_name_and_shipped_names() -> None:
    def make(letter: str) -> Any:
        def accuracy(problem: Problem, completion: Completion) -> float:
            return float(letter in completion.text)

        return accuracy

    result = rlreason.grpo(TINY, SUMS, reward=[make("a"), make("e"), "accuracy"], steps=1, **FAST)
    assert {"reward/accuracy", "reward/accuracy_", "reward/accuracy__"} <= set(result.metrics[0])


def test_resume_goes_on() -> None:
    rlreason.grpo(TINY, SUMS, reward=has_e, steps=2, out="r", **FAST)
    result = rlreason.grpo(TINY, SUMS, reward=has_e, steps=4, out="r", resume=True, **FAST)
    assert [row["step"] for row in result.metrics] == [0, 1, 2, 3]
    with pytest.raises(rlreason.UsageError, match="not empty"):
        rlreason.grpo(TINY, SUMS, reward=has_e, steps=2, out="r", **FAST)


def test_run_and_load_recipe() -> None:
    recipe = rlreason.load_recipe("quickstart", "seed=7")
    assert recipe.seed == 7
    with pytest.raises(rlreason.UsageError, match="did you mean 'quickstart'"):
        rlreason.run_recipe("quikstart")


def test_settings_reach_every_key() -> None:
    settings = {"sampler.max_rows": 3, "stage.grpo.objective": "rloo", "cluster.threads": 1}
    result = rlreason.grpo(TINY, SUMS, reward=has_e, steps=1, settings=settings, **FAST)
    assert "max_rows = 3" in (result.folder / "recipe.toml").read_text()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rlreason.grpo(TINY, SUMS, steps=1, max_token=8), "grpo has no 'max_token'; did you mean 'max_tokens'"),
        (lambda: rlreason.grpo(TINY, SUMS, steps=0), "stage.grpo.steps: must be at least 1, not 0"),
        (lambda: rlreason.grpo(TINY, [], steps=1), "the list is empty"),
        (lambda: rlreason.grpo(TINY, [{"question": "?"}], steps=1), r"problems\[0\] has no 'prompt'; it has: question"),
        (lambda: rlreason.grpo(TINY, ["a"], steps=1), r"problems\[0\]: give a dict or a Problem, not a str"),
        (lambda: rlreason.grpo(TINY, [*SUMS, {"prompt": "a"}], steps=1), r"problems\[24\] has no answer"),
        (lambda: rlreason.grpo(3, SUMS, steps=1), "model: give a folder"),
        (lambda: rlreason.grpo(TINY, SUMS, reward=3, steps=1), "neither a function nor a name"),
        (lambda: rlreason.grpo(TINY, SUMS, reward="acuracy", steps=1), "did you mean 'accuracy'"),
        (lambda: rlreason.sft(TINY, SUMS, steps=1), "solution"),
        (lambda: rlreason.grpo(TINY, SUMS, steps=1, settings={"stage.gpro.lr": 1}), "no stage 'gpro'"),
        (lambda: rlreason.score(["a"], []), "1 responses and 0 references"),
        (lambda: rlreason.evaluate("nowhere", SUMS), "there is no such folder"),
    ],
)
def test_mistakes_are_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(rlreason.UsageError, match=message):
        call()


def test_outside_the_main_thread() -> None:
    """Where signals can't be caught, they aren't."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(rlreason.grpo(TINY, SUMS, reward=has_e, steps=1, **FAST)))
    thread.start()
    thread.join()
    assert len(found[0].metrics) == 1


@pytest.mark.slow
def test_a_ray_that_the_user_initialised_is_used_and_left() -> None:
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        settings = {"cluster.kind": "ray", "cluster.rollout_workers": 1}
        result = rlreason.grpo(TINY, SUMS, reward=has_e, steps=2, settings=settings, **FAST)
        manifest = json.loads((result.folder / "manifest.json").read_text())
        assert manifest["stages"][0]["sampler"] == "transformers x 1 over Ray"
        assert ray.is_initialized()
    finally:
        ray.shutdown()
