"""The log-prob contract at a stage's start: real engines that report something else than what they drew from."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlreason.config import GrpoStage, OptimizerConfig, PolicyConfig
from rlreason.data.prompts import PromptFormat
from rlreason.delivery.packing import DeliveryError
from rlreason.errors import UsageError
from rlreason.policy.batch import rollout_sample
from rlreason.policy.policies import Policy, fresh_policy
from rlreason.sampler.canary import Canary
from rlreason.sampler.groups import draw_groups
from rlreason.sampler.handles import InlineCluster
from rlreason.sampler.jobs import EngineSpec
from rlreason.sampler.open import engine_spec
from rlreason.sampler.pool import RolloutPool
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.transformers_engine import TransformersEngine
from rlreason.sampler.worker import RolloutWorker
from rlreason.stages.contract import ROUNDING, LogprobContract
from rlreason.tasks.procedural import make_task
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions
from rlreason.types import Group, SamplingParams

TASK = make_task("arithmetic", {"min_terms": 2, "max_terms": 4}, seed=0)
PROBLEMS = [TASK.problem("train", index) for index in range(4)]


@pytest.fixture(scope="module")
def policy() -> Policy:
    model = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
             "head_dim": 16, "intermediate_size": 64, "initializer_range": 0.4}  # fmt: skip
    return fresh_policy(PolicyConfig(model_type="qwen3", model=model), TASK.alphabet, (), 0, torch.device("cpu"))


def stage_of(**changes: Any) -> GrpoStage:
    return GrpoStage(
        kind="grpo", name="rl", steps=1, problems_per_step=4, samples_per_problem=3, max_tokens=12, **changes
    )


def sampler_of(policy: Policy, engine: type[TransformersEngine], *, canary: bool = False) -> PoolSampler:
    spec = engine_spec("transformers", policy, max_rows=64, max_length=128)
    cluster = InlineCluster(lambda: RolloutWorker(engine))
    proof = Canary(policy.vocabulary, 128, policy.dtype) if canary else None
    sampler = PoolSampler(RolloutPool(cluster, spec, 1, canary=proof), policy.tokenizer, PromptFormat())
    sampler.publish(policy.weights(), 0, policy.expectations(sampler.probes))
    return sampler


def draw(policy: Policy, stage: GrpoStage, reported: GrpoStage | None = None) -> list[Group]:
    """Groups of the stage; ``reported``: with the log-probabilities of that stage's distribution."""
    cut = stage.top_p < 1.0 or stage.top_k > 0
    params = SamplingParams(
        samples_per_problem=3,
        temperature=stage.temperature,
        top_p=stage.top_p,
        top_k=stage.top_k,
        max_tokens=stage.max_tokens,
        record="ids" if cut else "",
    )
    sampler = sampler_of(policy, TransformersEngine)
    groups = list(draw_groups(sampler, PROBLEMS, params))
    sampler.close()
    return groups if reported is None else [_told(group, policy, reported) for group in groups]


def _told(group: Group, policy: Policy, reported: GrpoStage) -> Group:

    whole = [replace(one, sampled_from=None) for one in group.completions_G]
    trainer = trainer_of(policy)
    kept = group.completions_G if reported.top_p < 1.0 or reported.top_k else whole
    found = trainer.logprobs([rollout_sample(one) for one in kept], reported.temperature)
    told = zip(group.completions_G, found, strict=True)
    return replace(
        group, completions_G=tuple(replace(one, sampler_logprobs=log[len(one.prompt_ids) :]) for one, log in told)
    )


def trainer_of(policy: Policy) -> LocalTrainer:
    copied = Policy(model=policy.frozen_copy().requires_grad_(), tokenizer=policy.tokenizer)
    return LocalTrainer(copied, TrainerOptions(optimizer=OptimizerConfig(), total_steps=1, micro_batch_tokens=4096))


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.6}, {"temperature": 0.6, "top_p": 0.8}, {"top_k": 3}])
def test_what_our_engine_reports_is_what_the_trainer_computes(policy: Policy, changes: dict[str, Any]) -> None:
    stage, contract = stage_of(**changes), LogprobContract()
    contract.hold(0, draw(policy, stage), stage, trainer_of(policy))
    assert contract.settled


@pytest.mark.parametrize(
    ("changes", "reported", "says"),
    [
        ({"temperature": 0.6}, {}, "off at temperature 1. They must"),
        ({"temperature": 0.6, "top_p": 0.8}, {}, "the raw distribution"),
        ({"temperature": 0.6, "top_p": 0.8}, {"temperature": 0.6}, "no cut by top_p, top_k or min_p. They"),
        ({"temperature": 0.6, "top_k": 3}, {"top_k": 3}, "off at temperature 1. They must"),
    ],
)
def test_another_distribution_is_refused_by_its_name(
    policy: Policy, changes: dict[str, Any], reported: dict[str, Any], says: str
) -> None:
    stage = stage_of(**changes)
    with pytest.raises(UsageError, match=r"stage.rl: the sampler's log-probabilities are .*temperature = 0.6") as error:
        LogprobContract().hold(0, draw(policy, stage, stage_of(**reported)), stage, trainer_of(policy))
    assert says in str(error.value)
    assert all(f"{key} = {value:g}" in str(error.value) for key, value in changes.items())


def test_a_difference_that_no_reading_explains_is_the_corrections_to_bear(policy: Policy) -> None:
    """Such as a quantised engine's: it is no breach of the contract. And rounding is not even asked about."""
    stage = stage_of(temperature=0.6)
    for noise in (0.5 * ROUNDING, 0.3):
        groups = [_noisy(group, noise) for group in draw(policy, stage)]
        contract = LogprobContract()
        contract.hold(0, groups, stage, trainer_of(policy))
        assert contract.settled


def _noisy(group: Group, size: float) -> Group:
    generator = torch.Generator().manual_seed(1)

    def moved(values: Any) -> Any:
        signs = torch.randint(0, 2, (len(values),), generator=generator) * 2 - 1
        return values + size * signs.numpy()

    told = [replace(one, sampler_logprobs=moved(one.sampler_logprobs)) for one in group.completions_G]
    return replace(group, completions_G=tuple(told))


def test_tokens_of_older_weights_are_not_asked(policy: Policy) -> None:
    """With staleness the first groups may be of weights that the trainer has no more; the contract waits."""
    stage, contract = stage_of(temperature=0.6), LogprobContract()
    raw = draw(policy, stage, stage_of())
    contract.hold(1, raw, stage, trainer_of(policy))
    assert not contract.settled
    with pytest.raises(UsageError, match="temperature 1"):
        contract.hold(0, raw, stage, trainer_of(policy))


class _HalfHead(nn.Module):
    """A head that computes in bfloat16."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return (hidden.bfloat16() @ self.weight.bfloat16().t()).float()


class HalfHeadEngine(TransformersEngine):
    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._model.set_output_embeddings(_HalfHead(self._model.get_output_embeddings().weight.data))


def test_a_head_in_another_dtype_is_refused_by_the_first_delivery(policy: Policy) -> None:
    sampler = sampler_of(policy, TransformersEngine, canary=True)
    sampler.pool.settle_deliveries()
    sampler.close()
    sampler = sampler_of(policy, HalfHeadEngine, canary=True)
    with pytest.raises(DeliveryError, match=r"log-probabilities are .* off the trainer"):
        sampler.pool.settle_deliveries()
    sampler.close()


RECIPE = """
name = "raw"
[policy]
model_type = "qwen3"
[policy.model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
initializer_range = 0.4
[data]
train = "arithmetic"
[[stage]]
kind = "grpo"
name = "rl"
steps = 1
problems_per_step = 4
samples_per_problem = 4
max_tokens = 12
temperature = 0.6
"""
#: The engine draws as it should and says what the model's raw distribution had said.
REPORTS_RAW = """
import torch
from rlreason.sampler import transformers_engine as engine
choose = engine.choose
def raw(logprobs, uniform, params):
    chosen, _ = choose(logprobs, uniform, params)
    return chosen, torch.log_softmax(logprobs * params.temperature, -1).gather(1, chosen[:, None])[:, 0]
engine.choose = raw
from rlreason.cli import main
main()
"""


def test_a_run_with_an_engine_that_reports_raw_ends_before_it_learns(tmp_path: Path) -> None:
    recipe = tmp_path / "raw.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    command = [sys.executable, "-c", REPORTS_RAW, "run", str(recipe), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2, said
    assert "stage.rl: the sampler's log-probabilities are" in said
    assert "off at temperature 1. They must be of the distribution that was drawn from" in said
    assert not list((tmp_path / "run").glob("stages/*/metrics.jsonl"))
