"""The balancing loss' share of the gradient at the router logits: by hand, against float64, and what must not change
it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from rlreason.config import OptimizerConfig, PolicyConfig
from rlreason.diagnose.experts import balance_shares
from rlreason.objective.batch import LossOutput
from rlreason.objective.distillation.spec import FORWARD
from rlreason.policy.batch import collate, supervised_sample
from rlreason.policy.policies import Policy, fresh_policy
from rlreason.trainer.balance import with_router_loss
from rlreason.trainer.distilling import DistillationLoss
from rlreason.trainer.forward import CrossEntropyLoss
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions
from rlreason.types import TrainingSample

CPU = torch.device("cpu")
MOE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "intermediate_size": 64, "initializer_range": 0.2, "moe_intermediate_size": 32, "num_experts": 4,
    "num_experts_per_tok": 2,
}  # fmt: skip
SAMPLES = [
    supervised_sample([7, 8, 9, 10, 11, 12], [0, 0, 1, 1, 1, 1]),
    supervised_sample([9, 7, 7, 10], [0, 0, 1, 1]),
    supervised_sample([12, 8, 9], [0, 1, 1]),
]
TOKENS, COEFFICIENT = 8.0, 0.3
CROSS_ENTROPY = CrossEntropyLoss(denominator=TOKENS)


def policy(**options: object) -> Policy:
    config = PolicyConfig(model_type="qwen3_moe", model={**MOE, **options})
    return fresh_policy(config, "0123456789", (), 0, CPU)


def trainer(coefficient: float = COEFFICIENT, **options: Any) -> LocalTrainer:
    settings = TrainerOptions(optimizer=OptimizerConfig(lr=1e-3), total_steps=9, router_aux_loss=coefficient, **options)
    return LocalTrainer(policy(), settings)


def shares(one: LocalTrainer, samples: list[TrainingSample] = SAMPLES) -> list[float]:
    squares_L2 = one.forward_backward(samples, CROSS_ENTROPY).balance_L2
    assert squares_L2 is not None
    return balance_shares(squares_L2)


def oracle(micro_batches: list[list[TrainingSample]], coefficient: float = COEFFICIENT) -> list[float]:
    """float64, no hooks: what is differentiated are the logits that the routers gave, and copies of them."""
    model = policy().model.double()
    model.set_experts_implementation("eager")  # grouped products have no float64
    squares_L2 = torch.zeros((2, 2), dtype=torch.float64)
    for samples in micro_batches:
        rows = [model(torch.tensor(one.token_ids[:-1])[None], output_router_logits=True) for one in samples]
        logits = [row.router_logits[layer] for row in rows for layer in range(2)]
        masks = [torch.tensor(one.loss_mask[1:] > 0) for one in samples]
        targets = [torch.tensor(one.token_ids[1:]).long() for one in samples]
        entropy = sum(
            torch.nn.functional.cross_entropy(row.logits[0][mask], target[mask], reduction="sum")
            for row, mask, target in zip(rows, masks, targets, strict=True)
        )
        of_layers = [torch.cat([row.router_logits[layer] for row in rows]) for layer in range(2)]
        balance = torch.stack([load_balancing_loss_func((one,), 4, 2) for one in of_layers]).mean()
        tokens = sum(int(mask.sum()) for mask in masks)
        scale = coefficient * tokens / TOKENS
        total = torch.autograd.grad(scale * balance + entropy / TOKENS, logits, retain_graph=True)
        own = []  # of each layer's term by the layer's own logits, as if they came from nowhere
        for layer in range(2):
            leaves = [row.router_logits[layer].detach().requires_grad_() for row in rows]
            term = scale * load_balancing_loss_func((torch.cat(leaves),), 4, 2) / 2
            own.append(torch.autograd.grad(term, leaves))
        for place, gradient in enumerate(total):
            row, layer = divmod(place, 2)
            squares_L2[layer, 0] += own[layer][row].square().sum()
            squares_L2[layer, 1] += (gradient - own[layer][row]).square().sum()
    norms_L2 = squares_L2.sqrt()
    return (norms_L2[:, 0] / norms_L2.sum(dim=1)).tolist()


def test_by_hand() -> None:
    """Two experts, one chosen, four tokens whose logits are (ln 3, 0): p = (3/4, 1/4), all of them go to expert 0.

    The balance is 2 · 1 · mean p_0, its gradient at a token 2/4 · (3/4 · 1/4) · (1, −1) = 0.09375 · (1, −1); of four
    tokens it has the norm 0.09375 · √8, times the coefficient 0.5. The rest has (0.3, −0.4) at one token: 0.5.
    """
    logits = [torch.tensor([[3.0, 1.0]] * 4).log().requires_grad_()]
    batch = collate([supervised_sample([7, 8, 9, 10, 11], [0, 1, 1, 1, 1])], 0, CPU)
    rest = (logits[0][1] * torch.tensor([0.3, -0.4])).sum()
    model = policy(num_experts=2, num_experts_per_tok=1).model
    output = with_router_loss(LossOutput(loss=rest, sums={}), model, logits, batch, 0.5, 4.0)
    assert output.balance_L2 is not None
    assert balance_shares(output.balance_L2) == []  # nothing is known yet
    output.loss.backward()
    norm = 0.5 * 0.09375 * 8**0.5
    assert output.balance_L2.sqrt().tolist() == [[pytest.approx(norm), pytest.approx(0.5)]]
    assert balance_shares(output.balance_L2) == [pytest.approx(norm / (norm + 0.5))]
    found = logits[0].grad
    assert found is not None
    total = float(found.norm())
    assert norm / total != pytest.approx(norm / (norm + 0.5), rel=0.05)  # canary: of the total it is another number


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_micro_batches_against_float64(again: bool, threads: int) -> None:
    """Whole, and a sample each; layers that are computed again in the backward pass are hooked once."""
    options = {"activation_checkpointing": again, "threads": threads}
    whole = shares(trainer(**options))
    assert whole == pytest.approx(oracle([SAMPLES]), rel=1e-4)
    each = shares(trainer(micro_batch_tokens=1, **options))
    assert each == pytest.approx(oracle([[one] for one in SAMPLES]), rel=1e-4)
    assert each != pytest.approx(whole, rel=1e-2)  # the loss itself depends on micro-batches, slightly
    assert 0.05 < min(whole) < max(whole) < 0.95


def test_whole_rows_with_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlreason.trainer.local.takes_packed", lambda _: False)
    assert shares(trainer()) == pytest.approx(oracle([SAMPLES]), rel=1e-4)


def test_the_way_of_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """``backward()`` in turn, as on a GPU."""
    from rlreason.trainer import microbatches

    monkeypatch.setattr(
        microbatches,
        "_side_by_side",
        lambda _, masters, batches, loss_of, __: microbatches.in_turn(masters, batches, loss_of),
    )
    assert shares(trainer(micro_batch_tokens=1)) == pytest.approx(oracle([[one] for one in SAMPLES]), rel=1e-4)


def test_a_larger_coefficient_has_a_larger_share() -> None:
    """b / (b + r), and r is the same; in layers before the last it has the balance of later ones in it."""
    (_, one), (_, two) = shares(trainer(0.1)), shares(trainer(0.2))
    assert two == pytest.approx(2 * one / (1 + one), rel=1e-4)
    assert shares(trainer(1e4))[1] == pytest.approx(1.0, abs=1e-4)
    no_loss = trainer(0.0).forward_backward(SAMPLES, CROSS_ENTROPY)
    assert no_loss.balance_L2 is None


def test_calls_of_one_step_add_up() -> None:
    one = trainer(micro_batch_tokens=1)
    sums = one.forward_backward(SAMPLES[:1], CROSS_ENTROPY)
    sums.merge(one.forward_backward(SAMPLES[1:], CROSS_ENTROPY))
    assert sums.balance_L2 is not None
    assert balance_shares(sums.balance_L2) == pytest.approx(oracle([[one] for one in SAMPLES]), rel=1e-4)


def test_gradients_are_the_same_bits_with_and_without_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> dict[str, Tensor]:
        one = trainer(activation_checkpointing=True)
        one.forward_backward(SAMPLES, CROSS_ENTROPY)
        return {name: p.grad for name, p in one.model.named_parameters() if p.grad is not None}

    watched = gradients()
    monkeypatch.setattr("rlreason.trainer.balance._watched", lambda logits_NE, _: logits_NE)
    plain = gradients()
    assert watched.keys() == plain.keys()
    assert all(torch.equal(one, plain[name]) for name, one in watched.items())


def test_bfloat16_and_a_teacher() -> None:
    """bfloat16 rounds what is measured, by less than a tenth; a teacher's loss is the rest like any other."""
    assert shares(trainer(compute_dtype=torch.bfloat16)) == pytest.approx(oracle([SAMPLES]), rel=0.1)
    one = LocalTrainer(
        policy(),
        TrainerOptions(optimizer=OptimizerConfig(), total_steps=1, router_aux_loss=COEFFICIENT),
        teachers=[policy()],
    )
    found = one.forward_backward(SAMPLES, DistillationLoss(spec=FORWARD, weight=1.0, denominator=TOKENS)).balance_L2
    assert found is not None
    assert balance_shares(found)[1] == pytest.approx(1.0, abs=1e-3)  # its own teacher has nothing to say


def test_routers_without_a_gradient_say_nothing() -> None:
    one = trainer()
    one.model.requires_grad_(requires_grad=False)
    batch = collate(SAMPLES[:1], 0, CPU)
    logits = [torch.zeros((5, 4))] * 2
    output = with_router_loss(LossOutput(loss=torch.zeros(()), sums={}), one.model, logits, batch, 0.5, TOKENS)
    assert output.balance_L2 is not None
    assert balance_shares(output.balance_L2) == []
