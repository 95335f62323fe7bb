"""The entropy bonus and its adaptive coefficient: against whole float64 logits, Python floats, TRL's rule by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_linear import SPECS, TOLERANCE, V, apart, make, results, wide, with_grad
from torch import Tensor

from rlreason.config import PolicyConfig
from rlreason.objective.batch import Batch
from rlreason.objective.linear import HeadOptions, linear_policy_loss
from rlreason.objective.loss import policy_loss
from rlreason.objective.presets import PRESETS
from rlreason.objective.spec import ObjectiveSpec
from rlreason.objective.token_rows import TokenRows
from rlreason.policy.batch import collate
from rlreason.policy.policies import fresh_policy
from rlreason.stages.entropy import EntropyControl
from rlreason.trainer import forward
from rlreason.trainer.forward import PolicyGradientLoss
from rlreason.trainer.protocol import Models
from rlreason.types import TrainingSample

COEF, TEMPERATURE = 0.4, 0.8


def with_bonus(
    spec: ObjectiveSpec, hidden: Tensor, weight: Tensor, batch: Batch, old_BT: Tensor, reference_BT: Tensor
) -> list[Tensor]:
    """Loss and gradients through whole logits and autograd, in float64."""
    hidden, weight = with_grad(hidden.double(), weight.double())
    logs = torch.log_softmax(hidden @ weight.t() / TEMPERATURE, dim=-1)
    now_BT = logs.gather(-1, batch.targets_BT[..., None])[..., 0]
    reference = reference_BT.double() if spec.kl_coef and spec.kl_in == "loss" else None
    loss = policy_loss(now_BT, old_BT.double(), wide(batch), spec, reference).loss
    entropy_BT = -(logs.exp() * logs).sum(-1) * batch.loss_mask_BT
    return results(loss - spec.entropy_coef * (entropy_BT * wide(batch).weights_BT).sum(), hidden, weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("gradient", ["auto", "recompute"])
@pytest.mark.parametrize("name", SPECS)
def test_loss_and_gradients_are_those_of_whole_logits(name: str, gradient: str, dtype: torch.dtype) -> None:
    hidden, weight, batch, old_BT, reference_BT = make(dtype)
    spec = replace(SPECS[name], entropy_coef=COEF)
    options = HeadOptions(temperature=TEMPERATURE, tile_rows=3, gradient=gradient)  # type: ignore[arg-type]
    reference = reference_BT if spec.kl_coef and spec.kl_in == "loss" else None
    leaves = with_grad(hidden, weight)
    found = results(linear_policy_loss(*leaves, batch, spec, old_BT, reference, options).loss, *leaves)
    wanted = with_bonus(spec, hidden, weight, batch, old_BT, reference_BT)
    assert apart(found, wanted) < TOLERANCE[dtype]
    off = with_bonus(replace(spec, entropy_coef=COEF * 1.001), hidden, weight, batch, old_BT, reference_BT)
    assert apart(found, off) > TOLERANCE[dtype]  # canary


def test_one_token_in_python_floats() -> None:
    """−β H and its gradient by the logits, β π (log π + H), of a single position."""
    logits = [0.3, -1.2, 2.0]
    powers = [math.exp(z) for z in logits]
    pi = [power / sum(powers) for power in powers]
    entropy = -sum(p * math.log(p) for p in pi)
    one = torch.ones(1, 1, dtype=torch.float64)
    batch = Batch(
        token_ids_BT=torch.tensor([[1]]),
        targets_BT=torch.tensor([[1]]),
        loss_mask_BT=torch.ones(1, 1),
        sampler_logprobs_BT=one * math.log(pi[1]),
        advantages_BT=one * 0.0,
        weights_BT=one * 0.25,
    )
    hidden, weight = torch.tensor([[logits]], dtype=torch.float64).requires_grad_(), torch.eye(3, dtype=torch.float64)
    output = linear_policy_loss(hidden, weight, batch, replace(PRESETS["dapo"], entropy_coef=COEF))
    (slope,) = torch.autograd.grad(output.loss, hidden)
    assert float(output.loss.detach()) == pytest.approx(-COEF * 0.25 * entropy, abs=1e-15)
    assert slope.flatten().tolist() == pytest.approx([COEF * 0.25 * p * (math.log(p) + entropy) for p in pi], abs=1e-15)
    assert float(output.entropy_BT.sum()) == pytest.approx(entropy, abs=1e-14)  # the metric is not weighed


def test_beside_centering_both_are_added() -> None:
    """d(centering and bonus) − d(centering) = d(bonus): neither spoils the other's row."""
    hidden, weight, batch, old_BT, _ = make(torch.float64)
    rows = int(batch.loss_mask_BT.sum())
    generator = torch.Generator().manual_seed(7)
    q_RV = torch.log_softmax(torch.randn((rows, V), generator=generator, dtype=torch.float64), -1)
    sets = TokenRows(
        row_E=torch.arange(rows).repeat_interleave(V),
        ids_E=torch.arange(V).repeat(rows),
        ends=tuple(V * (at + 1) for at in range(rows)),
        whole=True,
        truncated=False,
        logprobs_E=q_RV.flatten(),
    )
    batch = replace(batch, sampled_from=sets)

    def of(**changes: float | str) -> list[Tensor]:
        leaves = with_grad(hidden, weight)
        spec = replace(PRESETS["dapo"], **changes)  # type: ignore[arg-type]
        options = HeadOptions(temperature=TEMPERATURE, tile_rows=4)
        return results(linear_policy_loss(*leaves, batch, spec, old_BT, None, options).loss, *leaves)

    both, centred = of(centering="exact", entropy_coef=COEF), of(centering="exact")
    bonus, plain = of(entropy_coef=COEF), of()
    one = [a - b for a, b in zip(both, centred, strict=True)]
    other = [a - b for a, b in zip(bonus, plain, strict=True)]
    assert apart(one, other) < 1e-12
    assert max(float(part.abs().max()) for part in other) > 1e-3


def test_micro_batches_change_nothing_and_a_masked_token_has_no_entropy() -> None:
    hidden, weight, batch, old_BT, _ = make(torch.float64)
    spec = replace(PRESETS["gspo"], entropy_coef=COEF)
    whole = linear_policy_loss(hidden, weight, batch, spec, old_BT).loss
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        part = replace(
            batch,
            **{
                name: getattr(batch, name)[rows]
                for name in ("token_ids_BT", "targets_BT", "loss_mask_BT", "sampler_logprobs_BT", "advantages_BT",
                             "weights_BT")
            },
        )  # fmt: skip
        parts.append(linear_policy_loss(hidden[rows], weight, part, spec, old_BT[rows]).loss)
    assert float(sum(parts)) == pytest.approx(float(whole), abs=1e-14)
    masked = hidden.clone()
    masked[batch.loss_mask_BT == 0] = torch.nan
    assert torch.equal(linear_policy_loss(masked, weight, batch, spec, old_BT).loss, whole)


@pytest.mark.parametrize("name", ["dapo", "gspo"])
def test_a_head_that_is_no_product_has_the_same_bonus(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole logits and autograd, as models with a soft cap or a scale are computed."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 16}  # fmt: skip
    model = fresh_policy(PolicyConfig(model_type="qwen3", model=shape), "0123456789", (), 0, torch.device("cpu")).model
    rows = [
        TrainingSample(token_ids=ids, loss_mask=[False, *[True] * (len(ids) - 1)], sampler_logprobs=-2.5,
                       advantages=advantage, weights=0.1)
        for ids, advantage in (([5, 6, 7, 8], 1.0), ([5, 9, 10], -0.5))
    ]  # fmt: skip
    batch, loss = (
        collate(rows, 0, torch.device("cpu")),
        PolicyGradientLoss(spec=replace(PRESETS[name], entropy_coef=COEF), temperature=TEMPERATURE),
    )
    found = []
    for plain in (True, False):
        if not plain:
            monkeypatch.setattr(forward, "plain_head", lambda model: None)
        output = loss(Models(policy=model), batch)
        gradients = torch.autograd.grad(output.loss, list(model.parameters()))
        found.append([output.loss.detach(), output.sums["entropy"], torch.cat([one.flatten() for one in gradients])])
    assert apart(found[0], [one.double() for one in found[1]]) < 1e-6
    without = replace(loss, spec=PRESETS[name])(Models(policy=model), batch).loss
    assert abs(float(without.detach()) - float(found[1][0])) > 1e-2  # canary


def test_the_adaptive_coefficient_is_trls_rule() -> None:
    """Off until a step had little entropy; up while it is at the target or below, down above it, within its bounds."""
    spec = ObjectiveSpec(entropy_coef=0.01, entropy_target=0.5, entropy_coef_delta=0.02, entropy_coef_max=0.04)
    control = EntropyControl.begun(spec)
    seen = []
    for entropy in (0.9, 0.4, 0.5, 0.3, 0.2, 0.8, 0.7, 0.9):
        seen.append(round(control.seen({"entropy": entropy}, spec)["entropy/coef"], 12))
    # 0.01 → 0 (0.9) → 0.02 → 0.04 → 0.04 → 0.04 → 0.02 (0.8) → 0 (0.7)
    assert seen == [0.0, 0.0, 0.02, 0.04, 0.04, 0.04, 0.0, 0.0]
    assert EntropyControl.begun(spec, {"entropy": control.state()}) == control
    assert control.seen({}, spec) == {"entropy/coef": 0.0}  # a step that trained nothing tells nothing
    assert EntropyControl.begun(spec, {"entropy": control.state()}) == control
    fixed = ObjectiveSpec(entropy_coef=0.01)
    assert EntropyControl.begun(fixed).seen({"entropy": 0.1}, fixed) == {"entropy/coef": 0.01}
    assert EntropyControl.begun(ObjectiveSpec()).seen({"entropy": 0.1}, ObjectiveSpec()) == {}


def test_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="entropy_coef must not be negative"):
        ObjectiveSpec(entropy_coef=-0.1)
    with pytest.raises(ValueError, match="must not exceed entropy_coef_max"):
        ObjectiveSpec(entropy_coef=2.0, entropy_target=0.5)
    assert "+ 0.01·H(π)" in ObjectiveSpec(entropy_coef=0.01).formula()
    assert "β from 0 towards H = 0.5" in ObjectiveSpec(entropy_target=0.5).formula()
