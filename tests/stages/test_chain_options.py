"""What R1's chain asks of stages: rewards of their own, a reference that is renewed; and the ledger and lineage of a
run, held against its files. Small real runs."""

from __future__ import annotations

import io
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from transformers import Qwen3Config

from rlreason.config import load
from rlreason.config.learning_rates import rate_of
from rlreason.errors import UsageError
from rlreason.job import JobOptions, run_job
from rlreason.plan.text import describe
from rlreason.run import atomic
from rlreason.run.manifest import StageEntry
from rlreason.sizing.shape import empty_model, shape_of
from rlreason.stages.ledger import Measured, Meter
from rlreason.trainer.counts import Passes
from rlreason.types import Completion, Group, Problem, TrainingSample

DISTILL = """
[[stage]]
kind = "distill"
name = "small"
model = "second"
trace_set = "elsewhere"
general = "others"
general_share = 0.25
steps = 2
batch_size = 4
optimizer = { lr = "auto" }
"""
RECIPE = """
name = "chain"
[policy]
model_type = "qwen3"
[policy.model]
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 8
[data]
train = "arithmetic"
[reward]
"judge.py:length" = 1.0
[cluster]
threads = 1
dollars_per_hour = 3.6
[[stage]]
kind = "grpo"
name = "first"
model = "policy"
objective = "r1"
steps = 4
reference_every = 2
problems_per_step = 4
samples_per_problem = 4
max_tokens = 12
eval_every = 4
eval_problems = 5
optimizer = { lr = 1e-2 }
[[stage]]
kind = "grpo"
name = "second"
steps = 1
problems_per_step = 2
samples_per_problem = 4
max_tokens = 12
[stage.reward]
"judge.py:letters" = 2.0
[[stage]]
kind = "eval"
name = "measured"
models = ["first", "second"]
problems = 4
max_tokens = 8
"""
JUDGES = """
def length(problem, completion):
    return len(completion.token_ids) / 12


def letters(problem, completion):
    return sum(map(ord, completion.text)) % 7 / 7
"""


def start(recipe: Path, out: Path, *overrides: str, resume: bool = False) -> None:
    options = JobOptions(folder=out, command="rlreason run chain", resume=resume)
    run_job(load(recipe, overrides), recipe, options, Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    (folder / "judge.py").write_text(JUDGES, encoding="utf-8")
    path = folder / "chain.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(recipe: Path) -> Path:
    out = recipe.parent / "run"
    start(recipe, out)
    return out


def manifest(run: Path) -> Any:
    return json.loads((run / "manifest.json").read_text(encoding="utf-8"))


def entry(run: Path, name: str) -> Any:
    return next(one for one in manifest(run)["stages"] if one["name"] == name)


def metrics(run: Path, stage: str) -> list[dict[str, Any]]:
    (file,) = run.glob(f"stages/*-{stage}/metrics.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_stage_has_its_own_rewards_and_another_those_of_the_recipe(run: Path) -> None:
    first, second = metrics(run, "first")[0], metrics(run, "second")[0]
    assert "reward/judge.py:length" in first
    assert "reward/judge.py:letters" not in first
    assert "reward/judge.py:length" not in second
    assert second["reward/mean"] == pytest.approx(2 * second["reward/judge.py:letters"])


def test_the_reference_is_the_policy_of_every_second_step(run: Path) -> None:
    """KL from itself is 0; one step later, and before it was renewed, it is not."""
    kl = [line["kl/reference"] for line in metrics(run, "first")]
    assert kl[0] == kl[2] == pytest.approx(0.0, abs=1e-9)
    assert min(kl[1], kl[3]) > 1e-6


def test_a_run_broken_after_the_reference_was_renewed_goes_on_bit_for_bit(recipe: Path, run: Path) -> None:
    """Three steps, then the fourth from the state: its KL is from the policy of step 2, which the state holds."""
    short = recipe.parent / "short"
    start(recipe, short, "stage.first.steps=3")
    state = next(short.glob("stages/01-first/state/step-*"))
    assert (state / "reference.safetensors").is_file()
    start(recipe, short, resume=True)
    drop = {"time", "seconds", "lr", "tokens_per_second", "delivery/seconds"}
    whole, gone_on = (
        {key: value for key, value in metrics(one, "first")[3].items() if key not in drop and "seconds/" not in key}
        for one in (run, short)
    )
    assert gone_on["kl/reference"] > 1e-6
    assert {key: value for key, value in gone_on.items() if not key.startswith(("accuracy", "heldout"))} == {
        key: value for key, value in whole.items() if not key.startswith(("accuracy", "heldout"))
    }
    assert entry(short, "first")["sha256"] == entry(run, "first")["sha256"]
    assert entry(short, "first")["work"]["training_flops"] == entry(run, "first")["work"]["training_flops"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage.first.objective=dapo", "reference_every = 2 replaces a reference that nothing reads"),
        ("trainer.lora={}", "with trainer.lora the reference is the model without the adapter"),
        ("stage.second.reward={}", "reward is empty"),
    ],
)
def test_what_contradicts_itself_is_refused(recipe: Path, override: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(recipe, (override,))


def test_an_unknown_reward_of_a_stage_is_named_with_its_place(recipe: Path) -> None:
    with pytest.raises(UsageError, match=r"stage\.second\.reward: .*did you mean 'accuracy'"):
        describe(load(recipe, ("stage.second.reward.acuracy=1.0",)), recipe)


def test_plan_says_what_is_its_own(recipe: Path) -> None:
    said = describe(load(recipe), recipe)
    assert "reference of the KL term: the policy of every 2 steps (2 updates)" in said
    assert "letters" in said.split("reward of this stage: ")[1].splitlines()[0]


def test_the_ledger_counts_what_the_files_say(run: Path) -> None:
    found, lines = entry(run, "first"), metrics(run, "first")
    work = found["work"]
    assert found["sampled_tokens"] == sum(line["tokens"] for line in lines)
    assert found["trained_tokens"] == sum(line["trained_tokens"] for line in lines)
    assert work["scored_tokens"] >= found["trained_tokens"]  # the reference says each once, and so do probes of draws
    assert work["evaluated_tokens"] > 0
    assert work["training_flops"] > 2 * work["scoring_flops"] > 0
    measured = entry(run, "measured")
    assert measured["work"]["training_flops"] == measured["work"]["scoring_flops"] == 0.0
    drawn = [json.loads(line) for path in run.glob("eval/*.jsonl") for line in path.read_text().splitlines()]
    assert measured["sampled_tokens"] == sum(len(one["token_ids"]) for row in drawn for one in row["completions"])


def group(prompt: int, *answers: int) -> Group:
    problem = Problem(id="p", prompt="", verifier="math", reference="1")
    completions = [
        Completion(
            prompt_ids=np.zeros(prompt, dtype=np.int32),
            token_ids=np.zeros(count, dtype=np.int32),
            sampler_logprobs=None,
            text="",
            finish_reason="stop",
        )
        for count in answers
    ]
    return Group(group_id="g", problem=problem, completions_G=tuple(completions))


def sample(prompt: int, answer: int, name: str) -> TrainingSample:
    mask = [False] * prompt + [True] * answer
    return TrainingSample(token_ids=[0] * (prompt + answer), loss_mask=mask, group_id=name)


def test_operations_are_those_of_the_model_counted_by_hand() -> None:
    """One layer, 16 wide: 2 query heads of 8, one of keys and values; 32 inside; 40 words."""
    config = Qwen3Config(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, vocab_size=40,
    )  # fmt: skip
    meter = Meter(
        entry=StageEntry(name="s", kind="grpo"), model=Measured(name="m", shape=shape_of(empty_model(config)))
    )
    layer, pair, head = 2 * (16 * (16 + 8 + 8 + 16) + 3 * 16 * 32), 2 * 2 * (8 + 8), 2 * 16 * 40
    meter.drawn([group(3, 4, 2)])
    meter.evaluated([group(1, 5)])
    work = meter.entry.work
    assert (meter.entry.sampled_tokens, work.evaluated_tokens) == (6, 5)
    pairs = (7**2 + 5**2 + 6**2) / 2
    assert work.sampling_flops == layer * (7 + 5 + 6) + pair * pairs + head * (4 + 2 + 5)
    passes = Passes()
    passes.add([sample(3, 4, "a"), sample(3, 2, "a"), sample(2, 1, "b")])
    assert (passes.tokens, passes.loss_tokens) == (3 + 4 + 2 + 2 + 1, 7)  # the prompt of a group once
    assert passes.pairs == 3**2 / 2 + 4 * (3 + 2) + 2 * (3 + 1) + 2**2 / 2 + 1 * (2 + 0.5)
    meter.teachers["t"] = meter.model
    meter.taught([sample(3, 4, "a")], "t")
    assert work.scored_tokens == 4
    assert work.scoring_flops == layer * 7 + pair * (3**2 / 2 + 4 * 5) + head * 4
    meter.teachers["unknown"] = Measured(name="server", shape=None)
    meter.taught([sample(1, 1, "")], "unknown")
    assert work.uncounted == ["server"]


def test_every_artefact_traces_to_its_inputs_by_hash(recipe: Path, run: Path) -> None:
    first, second, measured = (entry(run, name) for name in ("first", "second", "measured"))
    for one in (first, second):
        assert one["sha256"] == atomic.folder_sha256(run / one["checkpoint"])
    judge = sha256((recipe.parent / "judge.py").read_bytes()).hexdigest()
    data = manifest(run)["data"]
    assert {(one["kind"], one["name"]): one["sha256"] for one in second["made_from"]} == {
        ("model", "first"): first["sha256"],
        ("data", "train"): data["train"]["fingerprint"],
        ("reward", "judge.py"): judge,
    }
    made = {(one["kind"], one["name"]): one["sha256"] for one in measured["made_from"]}
    assert made[("model", "first")] == first["sha256"]
    assert made[("model", "second")] == second["sha256"]
    assert made[("data", "heldout")] == data["heldout"]["fingerprint"]
    results = [run / f"eval/measured-{name}.json" for name in ("first", "second")]
    assert measured["sha256"] == sha256("\n".join(map(atomic.file_sha256, results)).encode()).hexdigest()
    origins = {one["name"]: one["sha256"] for one in first["made_from"]}
    other = recipe.parent / "other"
    start(recipe, other, "seed=1", "stage.first.steps=1")
    assert {one["name"]: one["sha256"] for one in entry(other, "first")["made_from"]}["policy"] != origins["policy"]


def test_the_report_shows_ledger_and_graph(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    graph = page.split('<svg class="lineage-graph"')[1].split("</svg>")[0]
    for name in ("policy", "first", "second", "measured"):
        assert f">{name}</text>" in graph
        if name != "policy":
            assert entry(run, name)["sha256"][:10] in graph
    assert graph.count('class="edge end"') == 4  # policy-first, first-second, both-measured
    ledger = page.split('<section id="ledger"')[1].split("</section>")[0]
    assert "147,000" in ledger
    assert "$294,000" in ledger
    hours = sum(one["seconds"] for one in manifest(run)["stages"]) / 3600
    assert f"{hours:.3g}" in ledger


def test_a_student_learns_a_folder_of_traces_and_general_data_at_the_rate_of_its_size(
    tmp_path: Path, run: Path
) -> None:
    """Its rows are an input by hash; those that another run made can't be changed on the way."""
    recipe = tmp_path / "student.toml"
    head = RECIPE[: RECIPE.index("[[stage]]")].replace('train = "arithmetic"', 'train = "sums"')
    sets = '[data.sums]\npath = "arithmetic"\n[data.others]\npath = "arithmetic"\n'
    sets += "options = { max_terms = 5 }\n[reward]"
    stage = DISTILL.replace('model = "second"', 'model = "policy"')
    recipe.write_text(head.replace("[reward]", sets).replace('"judge.py:length"', "accuracy") + stage, encoding="utf-8")
    said = describe(load(recipe), recipe)
    assert "traces of elsewhere, which is NOT THERE yet: a run is refused" in said
    assert "lr auto: 0.0001, DeepSeek-R1's for Qwen2.5-Math-1.5B" in said
    with pytest.raises(UsageError, match=r"trace_set: there is no elsewhere/traces\.jsonl"):
        start(recipe, tmp_path / "none")
    row = {"problem_id": "p", "prompt": "1+1=", "messages": [], "response": "<think>2</think><answer>2</answer>"}
    rows = tmp_path / "elsewhere" / "traces.jsonl"
    rows.parent.mkdir()
    rows.write_text("".join(json.dumps(row | {"problem_id": str(at)}) + "\n" for at in range(20)), encoding="utf-8")
    start(recipe, tmp_path / "run")
    found, lines = entry(tmp_path / "run", "small"), metrics(tmp_path / "run", "small")
    assert [line["lr"] for line in lines] == [1e-4, 1e-4]
    made = {one["kind"]: one for one in found["made_from"]}
    assert made["traces"]["sha256"] == atomic.file_sha256(rows)
    assert made["data"]["name"] == "others"
    (kept,) = [one for one in manifest(tmp_path / "run")["inputs"] if one["kind"] == "data"]
    assert (kept["path"], kept["sha256"]) == (str(rows), made["traces"]["sha256"])
    rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match="changed since"):
        start(recipe, tmp_path / "run", resume=True)


def test_the_table_gives_r1s_own_students_their_rates() -> None:
    students = [  # parameters, as the models have them, and R1's rate
        (1.54e9, "qwen2", 1e-4), (7.62e9, "qwen2", 8e-5), (8.03e9, "llama", 5e-5), (14.8e9, "qwen2", 7e-5),
        (32.8e9, "qwen2", 6e-5), (70.6e9, "llama", 2e-5),
    ]  # fmt: skip
    assert [rate_of(size, family).value for size, family, _ in students] == [rate for _, _, rate in students]
    assert rate_of(8e9, "qwen3").value != rate_of(8e9, "glm4").value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage.small.traces=x", "trace_set is a folder of kept traces alone"),
        ("trainer.lora={}", "all weights, and the stage trains an adapter"),
        ('stage.second.optimizer.lr="auto"', "supervised training: write a number"),
    ],
)
def test_what_the_table_and_the_folder_are_not_for(tmp_path: Path, override: str, words: str) -> None:
    recipe = tmp_path / "recipe.toml"
    text = RECIPE.replace("reference_every = 2\n", "") + DISTILL.replace(
        'general = "others"\ngeneral_share = 0.25\n', ""
    )
    recipe.write_text(text, encoding="utf-8")
    assert load(recipe).stage[-1].name == "small"
    with pytest.raises(UsageError, match=words):
        load(recipe, (override,))
