"""The load-balancing loss of experts in supervised stages, and teacher_kl over vocabularies of different width."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from rlreason.config import OptimizerConfig, PolicyConfig, TrainerConfig
from rlreason.errors import UsageError
from rlreason.objective.batch import LossOutput
from rlreason.objective.distillation.spec import FORWARD
from rlreason.policy.batch import collate, supervised_sample
from rlreason.policy.policies import Policy, fresh_policy
from rlreason.trainer.balance import router_coefficient, with_router_loss
from rlreason.trainer.distilling import DistillationLoss
from rlreason.trainer.forward import CrossEntropyLoss
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions
from rlreason.types import TrainingSample

CPU = torch.device("cpu")
MODEL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
MOE = {**MODEL, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
SAMPLES = [
    supervised_sample([7, 8, 9, 10, 11, 12], [0, 0, 1, 1, 1, 1]),
    supervised_sample([9, 7, 7, 10], [0, 0, 1, 1]),
    supervised_sample([12, 8, 9], [0, 1, 1]),
]
TOKENS = 8.0


def policy(kind: str = "qwen3_moe", **options: object) -> Policy:
    model = {**(MOE if kind == "qwen3_moe" else MODEL), **options}
    return fresh_policy(PolicyConfig(model_type=kind, model=model), "0123456789", (), 0, CPU)


def trainer(model: Policy, coefficient: float = 0.0, micro_batch_tokens: int = 4096, **options: Any) -> LocalTrainer:
    settings = TrainerOptions(
        optimizer=OptimizerConfig(), total_steps=1, router_aux_loss=coefficient, micro_batch_tokens=micro_batch_tokens
    )
    return LocalTrainer(model, settings, **options)


def gradients(one: LocalTrainer) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in one.model.named_parameters() if p.grad is not None}


def router_logits(model: Policy, samples: list[TrainingSample]) -> tuple[torch.Tensor, ...]:
    """Of every token that a row reads, layer by layer, row by row."""
    rows = [model.model(torch.tensor(one.token_ids[:-1])[None], output_router_logits=True) for one in samples]
    return tuple(torch.cat([row.router_logits[layer] for row in rows]) for layer in range(2))


def balance(model: Policy, samples: list[TrainingSample]) -> torch.Tensor:
    """The mean over the layers of what transformers' function says of each."""
    return torch.stack([load_balancing_loss_func((one,), 4, 2) for one in router_logits(model, samples)]).mean()


def test_layers_that_collapse_on_other_experts_are_not_balanced() -> None:
    """Two layers of two experts, one chosen: all of the first layer's tokens go to expert 0, of the second's to 1, and
    the routers are sure. 2 · (1 · 1 + 0 · 0) = 2 in each; joined it would be 2 · (½ · ½ + ½ · ½) = 1, the minimum."""
    model = policy(num_experts=2, num_experts_per_tok=1).model
    logits = [torch.tensor([[50.0, 0.0]] * 4), torch.tensor([[0.0, 50.0]] * 4)]
    batch = collate([supervised_sample([7, 8, 9, 10, 11], [0, 1, 1, 1, 1])], 0, CPU)
    nothing = LossOutput(loss=torch.zeros(()), sums={})
    found = with_router_loss(nothing, model, logits, batch, 0.5, 4.0)
    assert found.sums["router_aux_loss"].item() == pytest.approx(2.0 * 4)
    assert found.loss.item() == pytest.approx(0.5 * 2.0)
    assert load_balancing_loss_func(tuple(logits), 2, 1).item() == pytest.approx(1.0)  # canary


@pytest.mark.parametrize("packed", [True, False])
def test_loss_and_gradient_are_those_of_transformers_by_layer(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlreason.trainer.local.takes_packed", lambda _: packed)
    plain, balanced = trainer(policy()), trainer(policy(), 0.5)
    first = plain.forward_backward(SAMPLES, CrossEntropyLoss(denominator=TOKENS))
    second = balanced.forward_backward(SAMPLES, CrossEntropyLoss(denominator=TOKENS))
    before, after = first.read(TOKENS), second.read(TOKENS)
    model = policy()
    expected = balance(model, SAMPLES)
    assert after["router_aux_loss"] == pytest.approx(expected.item(), rel=1e-5)
    added = torch.stack(second.losses).sum() - torch.stack(first.losses).sum()
    assert added.item() == pytest.approx(0.5 * expected.item(), rel=1e-5)
    assert after["loss"] == before["loss"]  # the metric is the cross-entropy
    assert "router_aux_loss" not in before
    (0.5 * expected).backward()
    without, with_it = gradients(plain), gradients(balanced)
    for name, parameter in model.model.named_parameters():
        added = with_it[name] - without[name]
        wanted = torch.zeros_like(added) if parameter.grad is None else parameter.grad
        assert (added - wanted).abs().max() < 1e-5, name
    gate = model.model.model.layers[0].mlp.gate.weight.grad
    assert gate is not None
    assert gate.abs().max() > 1e-3  # the canary


def test_padding_is_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole rows of different length against one row at a time, weighed by their loss tokens."""
    monkeypatch.setattr("rlreason.trainer.local.takes_packed", lambda _: False)
    together = trainer(policy(), 1.0).forward_backward(SAMPLES[:2], CrossEntropyLoss(denominator=6.0)).read(6.0)
    expected = balance(policy(), SAMPLES[:2]).item()
    assert together["router_aux_loss"] == pytest.approx(expected, rel=1e-5)


def test_micro_batches_are_weighed_by_their_loss_tokens() -> None:
    """Not the same number as of the whole step (a product of means), and documented so."""
    split = trainer(policy(), 1.0, micro_batch_tokens=1).forward_backward(SAMPLES, CrossEntropyLoss(denominator=TOKENS))
    each = [balance(policy(), [one]).item() for one in SAMPLES]
    expected = sum(one * tokens for one, tokens in zip(each, (4, 2, 2), strict=True)) / TOKENS
    assert split.read(TOKENS)["router_aux_loss"] == pytest.approx(expected, rel=1e-5)


def test_whose_coefficient() -> None:
    fresh = PolicyConfig(model_type="qwen3_moe", model=MOE)
    model = policy().model
    assert TrainerConfig().router_aux_loss == "auto"
    assert router_coefficient("auto", fresh, model) == 0.0  # the quickstart
    asked = PolicyConfig(model_type="qwen3_moe", model={**MOE, "router_aux_loss_coef": 0.02})
    assert router_coefficient("auto", asked, policy(router_aux_loss_coef=0.02).model) == 0.02
    loaded = PolicyConfig(path="somewhere")
    assert router_coefficient("auto", loaded, model) == 0.001  # Qwen3's own
    assert router_coefficient("off", loaded, model) == 0.0
    assert router_coefficient(0.1, loaded, model) == 0.1
    assert router_coefficient(0.1, loaded, policy("qwen3").model) == 0.0  # a dense student
    assert TrainerConfig(router_aux_loss=0.01).router_aux_loss == 0.01


def test_a_model_without_such_a_loss_is_refused() -> None:
    options = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1}
    config = PolicyConfig(model_type="glm4_moe", model={**MODEL, **options, "topk_group": 1})
    model = fresh_policy(config, "01", (), 0, CPU).model
    assert router_coefficient("auto", PolicyConfig(path="x"), model) == 0.0
    with pytest.raises(UsageError, match="no load-balancing loss for Glm4MoeForCausalLM"):
        router_coefficient(0.1, config, model)


def test_reinforcement_learning_has_none() -> None:
    from rlreason.objective.spec import ObjectiveSpec
    from rlreason.trainer.forward import PolicyGradientLoss

    sums = trainer(policy(), 0.5).forward_backward(SAMPLES, PolicyGradientLoss(spec=ObjectiveSpec())).read(TOKENS)
    assert "router_aux_loss" not in sums


def test_a_teacher_with_a_wider_head_teaches() -> None:
    """Padded vocabularies: 20 rows against 32 of one tokenizer. The rows behind it change nothing."""
    student, teacher = policy("qwen3", vocab_size=20), policy("qwen3", vocab_size=32)
    words = len(student.tokenizer)
    assert words < 20
    loss = DistillationLoss(spec=FORWARD, denominator=TOKENS, weight=1.0, shared=words)
    found = trainer(student, teachers=[teacher]).forward_backward(SAMPLES, loss).read(TOKENS)["divergence"]
    expected = 0.0
    for sample in SAMPLES:
        ids = torch.tensor(sample.token_ids[:-1])[None]
        with torch.no_grad():
            ours, theirs = student.model(ids).logits[0, :, :words], teacher.model(ids).logits[0, :, :words]
        kl = (theirs.softmax(-1) * (theirs.log_softmax(-1) - ours.log_softmax(-1))).sum(-1)
        expected += float(kl[torch.tensor(sample.loss_mask[1:])].sum())
    assert found == pytest.approx(expected / TOKENS, rel=1e-5)
    assert found > 1e-2


def test_the_teacher_is_held_once() -> None:
    teacher = policy("qwen3")
    learner = trainer(policy("qwen3"), teachers=[teacher])
    assert learner._models.teachers == (teacher.model,)
    assert not any(p.requires_grad for p in teacher.model.parameters())
