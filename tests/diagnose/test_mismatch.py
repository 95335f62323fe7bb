"""The mismatch doctor on causes made by hand: each is found, in its size, and nothing else is blamed.

The samplers here are plain transformers models that score whole rows one by one, not the code that is tested.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlreason.config import GrpoStage
from rlreason.diagnose.mismatch import FILE, MAX_TOKENS, MismatchDoctor, MismatchReport, diagnose
from rlreason.diagnose.mismatch_chain import CAUSES, split
from rlreason.policy.attention import ATTENTION
from rlreason.routing import FREE, RoutedPass, find_routers, options_of
from rlreason.run.directory import RunDirectory
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.rescoring import Precision, Rescorer, WeightHistory
from rlreason.types import Completion, Group, Problem

BFLOAT16 = torch.bfloat16
VOCABULARY = 64
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "initializer_range": 0.3,
    "use_cache": False,
}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2}
#: Rounding of a float32 forward pass: rows whole or packed, alone or together.
ROUNDING = 2e-5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As a run has it: two threads on products this small wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(kind: str, dtype: torch.dtype = torch.float32, *, packs: bool = False) -> PreTrainedModel:
    """Random weights, the same for every dtype. ``packs``: with the attention that takes packed micro-batches."""
    config = AutoConfig.for_model(kind, **SHAPE, **(EXPERTS if "moe" in kind else {}))
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_config(config)
    model = AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation=ATTENTION if packs else "sdpa"
    ).eval()
    model.load_state_dict(fresh.state_dict())
    return cast(PreTrainedModel, model)


@torch.no_grad()
def drawn_by(
    model: PreTrainedModel, blank: Completion, temperature: float = 1.0, routed: RoutedPass | None = None
) -> list[float]:
    """log π of each token of a completion, its row alone; the head in float32, as it is in the trainer."""
    ids = torch.tensor([[*blank.prompt_ids.tolist(), *blank.token_ids.tolist()]])
    hidden_TH = model.base_model(input_ids=ids[:, :-1], **options_of(routed)).last_hidden_state[0]
    logits_TV = hidden_TH.float() @ model.get_output_embeddings().weight.float().t() / temperature
    logprobs_T = torch.log_softmax(logits_TV, dim=-1).gather(1, ids[0, 1:, None])[:, 0]
    found: list[float] = logprobs_T[-len(blank.token_ids) :].tolist()
    return found


def blanks(count: int = 12, longest: int = 24) -> list[Completion]:
    """Completions of 3 to ``longest`` tokens behind three prompts, without log-probabilities."""
    rng = random.Random(7)
    prompts = [tuple(rng.randrange(VOCABULARY) for _ in range(length)) for length in (3, 5, 8)]
    return [
        Completion(
            prompt_ids=prompts[number % 3],
            token_ids=(tokens := tuple(rng.randrange(VOCABULARY) for _ in range(rng.randrange(3, longest + 1)))),
            sampler_logprobs=(0.0,) * len(tokens),
            text="",
            finish_reason="stop",
        )
        for number in range(count)
    ]


def sampled(sampler: PreTrainedModel, temperature: float = 1.0, version: int = 0, **blank: Any) -> list[Completion]:
    """All blanks with the log-probabilities of ``sampler``."""
    return [
        replace(
            one,
            sampler_logprobs=tuple(drawn_by(sampler, one, temperature)),
            policy_versions=version,
        )
        for one in blanks(**blank)
    ]


def plus(completions: Sequence[Completion], noise: Sequence[Sequence[float]]) -> list[Completion]:
    return [
        replace(one, sampler_logprobs=one.sampler_logprobs + np.array(added))
        for one, added in zip(completions, noise, strict=True)
    ]


def groups_of(completions: Sequence[Completion]) -> list[Group]:
    problem = Problem(id="p", prompt="", verifier="math", reference="1")
    return [Group(group_id="g", problem=problem, completions_G=tuple(completions))]


def stage_of(**changes: Any) -> GrpoStage:
    settings = {"kind": "grpo", "name": "grpo", "steps": 9, "problems_per_step": 2, "max_tokens": 8} | changes
    return GrpoStage.model_validate(settings)


def examine(
    model: PreTrainedModel,
    completions: Sequence[Completion],
    *,
    step: int = 0,
    history: WeightHistory | None = None,
    sampler_dtype: torch.dtype | None = None,
    **stage: Any,
) -> MismatchReport:
    sampler = None if sampler_dtype is None else Precision(sampler_dtype)
    report = diagnose(groups_of(completions), step, model, history or WeightHistory(1), stage_of(**stage), sampler)
    assert report is not None
    assert math.isclose(sum(part.share for part in report.parts.values()), 1.0) or report.total.max == 0.0
    return report


def sizes(report: MismatchReport) -> dict[str, float]:
    return {cause: part.max for cause, part in report.parts.items()}


def only(report: MismatchReport, cause: str, *, least: float, rest: float = ROUNDING) -> None:
    """``cause`` takes all of the difference, and it is more than ``least`` at its largest."""
    assert report.parts[cause].max > least
    assert report.parts[cause].max == pytest.approx(report.total.max, abs=4 * rest)
    assert max(size for other, size in sizes(report).items() if other != cause) <= rest
    assert report.advice.cause == cause


def nudge(model: PreTrainedModel, size: float, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize(("kind", "experts"), [("qwen3", "dense"), ("qwen3_moe", "own")])
def test_a_sampler_that_agrees_is_left_alone(kind: str, experts: str, *, packs: bool) -> None:
    report = examine(model_of(kind, packs=packs), sampled(model_of(kind), 0.7), temperature=0.7)
    assert max(sizes(report).values()) <= ROUNDING
    assert (report.experts, report.rerouted) == (experts, None if experts == "dense" else 0.0)
    assert (report.completions, report.tokens) == (12, sum(len(one.token_ids) for one in blanks()))
    assert report.sampler_temperature == 0.7
    assert report.advice.cause == "none"


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_old_weights_are_staleness(kind: str) -> None:
    model = model_of(kind, packs=True)
    history = WeightHistory(2)
    history.add(4, model.state_dict())
    completions = sampled(model_of(kind), 0.8, version=4)
    nudge(model, 0.001)
    report = examine(model, completions, step=5, history=history, staleness=1, temperature=0.8)
    only(report, "staleness", least=0.012)
    assert (report.versions, report.left_out) == ((4, 4), 0)
    assert 'correction = "tis"' in report.advice.setting
    assert report.advice.applied
    # Much older weights, and the advice is another.
    nudge(model, 0.1)
    far = examine(model, completions, step=5, history=history, staleness=3, temperature=0.8)
    assert far.parts["staleness"].k3 > 0.02
    assert (far.advice.cause, far.advice.setting, far.advice.applied) == ("staleness", "staleness = 2", False)


def test_weights_that_changed_within_a_sequence_are_staleness_of_its_first_part() -> None:
    model = model_of("qwen3", packs=True)
    history = WeightHistory(2)
    old = [drawn_by(model_of("qwen3"), one) for one in blanks()]
    history.add(0, model.state_dict())
    nudge(model, 0.05)
    new = [drawn_by(model, one) for one in blanks()]
    mixed = [
        replace(
            one,
            sampler_logprobs=(*old[at][:2], *new[at][2:]),
            policy_versions=(0, 0) + (1,) * (len(one.token_ids) - 2),
        )
        for at, one in enumerate(blanks())
    ]
    report = examine(model, mixed, step=1, history=history, staleness=1)
    only(report, "staleness", least=0.02)
    assert report.versions == (0, 1)
    gone = examine(model, [*mixed[:3], *sampled(model, version=1)[3:]], step=1, history=WeightHistory(1), staleness=1)
    assert (gone.left_out, gone.completions, gone.advice.cause) == (3, 9, "none")


def test_rounding_to_the_samplers_dtype_is_precision() -> None:
    """One row a micro-batch, unpacked: the very arithmetic of the bfloat16 sampler, so nothing may be left."""
    completions = sampled(model_of("qwen3", BFLOAT16))
    report = examine(model_of("qwen3"), completions, sampler_dtype=BFLOAT16, micro_batch_tokens=1)
    only(report, "precision", least=0.02)
    assert (report.trainer_dtype, report.sampler_dtype) == ("float32", "bfloat16")
    # Blind to the dtype, the same difference is nobody's.
    blind = examine(model_of("qwen3"), completions, micro_batch_tokens=1)
    only(blind, "residual", least=0.02)


def test_experts_that_flip_in_low_precision_are_the_routers() -> None:
    completions = sampled(model_of("qwen3_moe", BFLOAT16), count=30)
    options: dict[str, Any] = {"sampler_dtype": BFLOAT16, "micro_batch_tokens": 1}
    report = examine(model_of("qwen3_moe"), completions, **options)
    assert report.experts == "own"
    assert report.rerouted is not None
    assert 0.0 < report.rerouted < 0.2
    assert report.parts["router"].max > 0.02
    assert report.parts["precision"].max > 0.02
    assert report.parts["residual"].max <= ROUNDING


def test_equal_experts_leave_the_router_nothing() -> None:
    """A bfloat16 sampler that is held to the float32 model's experts, and says so."""
    ours, theirs = model_of("qwen3_moe"), model_of("qwen3_moe", BFLOAT16)
    completions = held_to(theirs, [chosen_by(ours, one) for one in blanks(30)], blanks(30))
    report = examine(ours, completions, sampler_dtype=BFLOAT16, micro_batch_tokens=1)
    only(report, "precision", least=0.02)
    assert (report.experts, report.rerouted) == ("reported", 0.0)


@pytest.mark.parametrize("packs", [True, False])
def test_other_experts_than_the_trainers_are_the_routers(*, packs: bool) -> None:
    """A float32 sampler that sends the completions' tokens to the next experts."""
    theirs = model_of("qwen3_moe")
    shifted = [(chosen_by(theirs, one) + 1) % 8 for one in blanks()]
    completions = held_to(theirs, shifted, blanks())
    report = examine(model_of("qwen3_moe", packs=packs), completions)
    only(report, "router", least=0.1)
    assert (report.experts, report.rerouted) == ("reported", 1.0)
    assert 'correction = "icepop"' in report.advice.setting
    gspo = examine(model_of("qwen3_moe", packs=packs), completions, objective="gspo")
    assert 'correction_level = "sequence_mean"' in gspo.advice.setting
    # Of another shape than the model's experts, a report is not taken for one.
    odd = [replace(one, routed_experts=one.routed_experts[:, :1]) for one in completions]
    assert examine(model_of("qwen3_moe"), odd).experts == "own"


def chosen_by(model: PreTrainedModel, blank: Completion) -> Tensor:
    """Experts of the positions that predict the completion's tokens, [T, L, K], from the routers' logits."""
    ids = torch.tensor([[*blank.prompt_ids.tolist(), *blank.token_ids.tolist()][:-1]])
    with torch.no_grad():
        logits = model(input_ids=ids, output_router_logits=True).router_logits
    experts_TLK = torch.stack([layer.topk(2, dim=-1).indices for layer in logits], dim=1)
    return experts_TLK[-len(blank.token_ids) :]


def held_to(model: PreTrainedModel, experts: Sequence[Tensor], rows: Sequence[Completion]) -> list[Completion]:
    assert find_routers(model) is not None
    found = []
    for one, experts_TLK in zip(rows, experts, strict=True):
        free_PLK = torch.full((len(one.prompt_ids) - 1, *experts_TLK.shape[1:]), FREE)
        given_NLK = torch.cat([free_PLK, experts_TLK]).to(torch.uint8)
        logprobs_T = tuple(drawn_by(model, one, routed=RoutedPass(given_NLK=given_NLK, replay=True)))
        found.append(replace(one, sampler_logprobs=logprobs_T, routed_experts=experts_TLK.numpy()))
    return found


def test_a_sampler_that_forgot_the_temperature_is_a_bug() -> None:
    report = examine(model_of("qwen3", packs=True), sampled(model_of("qwen3"), 1.0), temperature=0.6)
    only(report, "transform", least=0.2)
    assert report.sampler_temperature == 1.0
    assert (report.advice.setting, report.advice.applied) == ("", False)
    assert "a bug" in report.advice.cure


def test_what_nothing_explains_is_left_over() -> None:
    rng = random.Random(3)
    noise = [[rng.choice((-0.1, 0.1)) for _ in one.token_ids] for one in blanks()]
    report = examine(model_of("qwen3", packs=True), plus(sampled(model_of("qwen3")), noise))
    only(report, "residual", least=0.099)
    # By hand: |Δ| is 0.1 everywhere, and log r, trainer − sampler, is −0.1 where 0.1 was added: r − 1 − log r.
    up = sum(value > 0 for added in noise for value in added) / report.tokens
    k3 = up * (math.exp(-0.1) - 0.9) + (1 - up) * (math.exp(0.1) - 1.1)
    assert report.total.mean == pytest.approx(0.1, abs=1e-5)
    assert report.total.k3 == pytest.approx(k3, abs=1e-5)
    assert report.parts["residual"].share > 0.999
    assert "kernels" in report.advice.cure
    # In low precision with experts, the same difference may be theirs.
    moe = model_of("qwen3_moe", BFLOAT16)
    noisy = plus(sampled(moe), noise)
    unseen = examine(moe, noisy, micro_batch_tokens=1)
    assert (unseen.advice.cause, unseen.experts) == ("residual", "own")
    assert "flip experts" in unseen.advice.reason
    assert "tis" in unseen.advice.setting, "nothing that a mask would leave out"
    wild = [replace(noisy[0], sampler_logprobs=noisy[0].sampler_logprobs - 1.0), *noisy[1:]]
    assert "icepop" in examine(moe, wild, micro_batch_tokens=1).advice.setting


def test_a_delivery_that_went_missing_is_told_from_other_remainders() -> None:
    """The sampler says that it holds version 1, and draws with version 0."""
    model = model_of("qwen3", packs=True)
    history = WeightHistory(1)
    history.add(0, model.state_dict())
    nudge(model, 0.05)
    report = examine(model, sampled(model_of("qwen3"), version=1), step=1, history=history)
    only(report, "residual", least=0.05)
    assert "weights do not reach the sampler" in report.advice.cure


def all_at_once() -> tuple[Rescorer, list[Completion]]:
    """Old weights, low precision, flipped experts, a forgotten temperature and noise, in one sampler."""
    model = model_of("qwen3_moe")
    history = WeightHistory(1)
    history.add(0, model.state_dict())
    rng = random.Random(5)
    noise = [[rng.gauss(0, 0.05) for _ in one.token_ids] for one in blanks()]
    completions = plus(sampled(model_of("qwen3_moe", BFLOAT16), 1.0, version=0), noise)
    nudge(model, 0.01)
    return Rescorer(model, 1, history, completions, 4096), completions


def test_the_parts_add_up_to_the_whole_token_by_token() -> None:
    rescorer, completions = all_at_once()
    found = split(rescorer, completions, 1, 0.6, (Precision(torch.float32), Precision(BFLOAT16)))
    parts_N = sum(found.parts.values(), torch.zeros(rescorer.count, dtype=torch.float64))
    sampler_N = torch.tensor([value for one in completions for value in one.sampler_logprobs], dtype=torch.float64)
    trainer_N = rescorer.score(1, Precision(torch.float32), 0.6).logprobs_N
    torch.testing.assert_close(parts_N, trainer_N - sampler_N, atol=1e-12, rtol=0)
    assert found.sampler_temperature == 1.0
    for cause in CAUSES:
        assert float(found.parts[cause].abs().max()) > 1e-3, cause
    # Canary: a chain that lost a link is seen.
    assert not torch.allclose(parts_N - found.parts["router"], trainer_N - sampler_N, atol=1e-4)


def test_the_whole_is_what_the_metrics_say() -> None:
    model = model_of("qwen3")
    completions = sampled(model_of("qwen3", BFLOAT16))
    report = examine(model, completions)
    differences = [
        ours - theirs
        for one in completions
        for ours, theirs in zip(drawn_by(model, one), one.sampler_logprobs, strict=True)
    ]
    assert report.total.mean == pytest.approx(sum(map(abs, differences)) / len(differences), abs=1e-5)
    assert report.total.max == pytest.approx(max(map(abs, differences)), abs=2e-5)
    by_hand = sum(math.exp(one) - 1 - one for one in differences) / len(differences)
    assert report.total.k3 == pytest.approx(by_hand, abs=1e-6)


def test_few_are_taken_from_all_over() -> None:
    many = [replace(one, sampler_logprobs=(-float(at),) * len(one.token_ids)) for at, one in enumerate(blanks(300))]
    report = examine(model_of("qwen3"), many)
    assert report.completions == 64
    long = blanks(3, longest=6000)
    lengths = [len(one.token_ids) for one in long]
    cut = examine(model_of("qwen3"), long)
    assert sum(lengths) > MAX_TOKENS
    assert cut.tokens == MAX_TOKENS
    assert diagnose([], 0, model_of("qwen3"), WeightHistory(1), stage_of()) is None


def test_the_doctor_keeps_what_it_needs_and_writes_when_due() -> None:
    model = model_of("qwen3")
    lines: list[dict[str, Any]] = []

    def append(stage: str, file: str, row: dict[str, Any]) -> None:
        assert (stage, file) == ("grpo", FILE)
        lines.append(json.loads(json.dumps(row)))

    run = cast(RunDirectory, SimpleNamespace(append=append))
    stage = stage_of(diagnose_every=3, staleness=1, steps=8)
    trainer = SimpleNamespace(model=model, weights=model.state_dict().items, dtype="float32", router_dtype="float32")
    doctor = MismatchDoctor(stage, run, cast(LocalTrainer, trainer))
    before = sampled(model)
    for step in range(8):
        # Each step learns from what the version before drew.
        groups = groups_of([replace(one, policy_versions=max(0, step - 1)) for one in before])
        before = sampled(model)
        doctor.look(step, groups)
        nudge(model, 0.02, seed=step)
    assert [line["step"] for line in lines] == [2, 5, 7]
    for line in lines:
        assert line["versions"] == [line["step"] - 1] * 2
        assert line["parts"]["staleness"]["share"] > 0.99
        assert line["left_out"] == 0
        assert line["advice"]["cause"] == "staleness"
