"""Fixed inputs whose sequences have one advantage and one weight each, and what the objective makes of them, as bits.

No number here comes from a random generator or a function of a library: inputs are the same on every machine. B = 5
sequences, T = 7 positions, H = 4, V = 9.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from kernel_cases import TOKEN_SPECS
from torch import Tensor

from rlreason.objective import loss as losses
from rlreason.objective.batch import Batch, LossOutput
from rlreason.objective.linear import HeadOptions, linear_policy_loss
from rlreason.objective.loss import policy_loss
from rlreason.objective.presets import PRESETS
from rlreason.objective.spec import ObjectiveSpec

FIXTURE = Path(__file__).with_name("fixtures") / "one_advantage_per_sequence.json"
B, T, H, V = 5, 7, 4, 9
#: Elements of a block and rows of a tile: both paths take several.
BLOCK, TILE = 2 * T, 6
Numbers = dict[str, str]
#: Presets and axes that the recorded code did not have.
SINCE = {"deepseek_v32", "dppo_kl", "dppo_tv", "flash_reinforce", "gdpo", "clip dppo_kl", "sequence gate"}


class Inputs:
    """float32; masked places hold nan where a log-probability stands. The third sequence has no loss token."""

    def __init__(self) -> None:
        rng = random.Random(14)

        def table(low: float, high: float, *shape: int) -> Tensor:
            """Multiples of 2⁻¹²."""
            count = int(torch.Size(shape).numel())
            values = [int(4096 * (low + (high - low) * rng.random())) / 4096 for _ in range(count)]
            return torch.tensor(values, dtype=torch.float32).view(shape)

        self.mask_BT = (table(0.0, 1.0, B, T) < 0.75).float()
        self.mask_BT[2] = 0.0
        self.now_BT = table(-2.5, 0.0, B, T)
        self.old_BT = self.now_BT + table(-0.4, 0.4, B, T)
        self.sampler_BT = self.old_BT + table(-0.4, 0.4, B, T)
        self.reference_BT = self.now_BT + table(-0.8, 0.8, B, T)
        self.advantages_B1 = table(-1.5, 1.5, B, 1)
        self.weights_B1 = table(0.01, 0.1, B, 1)
        self.hidden_BTH, self.weight_VH = table(-1.5, 1.5, B, T, H), table(-1.5, 1.5, V, H)
        self.targets_BT = table(0.0, V, B, T).long()
        for values_BT in (self.now_BT, self.old_BT, self.sampler_BT, self.reference_BT):
            values_BT.masked_fill_(self.mask_BT == 0, torch.nan)

    def batch(self) -> Batch:
        return Batch(
            token_ids_BT=self.targets_BT,
            targets_BT=self.targets_BT,
            loss_mask_BT=self.mask_BT,
            sampler_logprobs_BT=self.sampler_BT,
            advantages_BT=self.advantages_B1 * self.mask_BT,
            weights_BT=self.weights_B1 * self.mask_BT,
        )


def cases() -> Mapping[str, tuple[str, ObjectiveSpec, bool]]:
    """Every preset through both paths, and every single choice through the first, off- and on-policy; not ``old``, an
    axis that the recorded code did not have."""
    named = {f"padded/{name}": ("padded", spec) for name, spec in TOKEN_SPECS.items() if spec.old == "trainer"}
    named |= {f"head/{name}": ("head", spec) for name, spec in PRESETS.items()}
    named = {name: case for name, case in named.items() if name.partition("/")[2] not in SINCE}
    return {
        f"{name}/{'old' if old else 'on-policy'}": (path, spec, old)
        for name, (path, spec) in named.items()
        for old in (True, False)
    }


def computed(path: str, spec: ObjectiveSpec, with_old: bool) -> Numbers:
    """Loss, metrics and gradients of one case: the bytes of each float32, most significant first."""
    inputs = Inputs()
    old_BT = inputs.old_BT if with_old else None
    reference_BT = inputs.reference_BT if spec.kl_coef and spec.kl_in == "loss" else None
    output: LossOutput
    if path == "padded":
        leaves: tuple[Tensor, ...] = (inputs.now_BT.requires_grad_(),)
        output = policy_loss(leaves[0], old_BT, inputs.batch(), spec, reference_BT)
    else:
        leaves = (inputs.hidden_BTH.requires_grad_(), inputs.weight_VH.requires_grad_())
        options = HeadOptions(tile_rows=TILE)
        output = linear_policy_loss(*leaves, inputs.batch(), spec, old_BT, reference_BT, options)
    gradients = torch.autograd.grad(output.loss, leaves)
    return {
        "loss": bits(output.loss.detach()),
        **{f"gradient {at}": bits(gradient) for at, gradient in enumerate(gradients)},
        **{name: bits(value) for name, value in {**output.sums, **output.maxima}.items()},
    }


def bits(values: Tensor) -> str:
    """float32 as hexadecimal digits; −0 is written as 0, whose sign nothing reads."""
    return "".join(struct.pack(">f", value + 0.0).hex() for value in values.reshape(-1).tolist())


def numbers(text: str) -> list[float]:
    """What ``bits`` wrote."""
    return [value for (value,) in struct.iter_unpack(">f", bytes.fromhex(text))]


def arithmetic() -> str:
    """Hash of what torch makes of the operations in question here: it differs between machines whose libraries differ
    in a last digit, as they may by processor and release."""
    inputs = Inputs()
    tile_CH = inputs.hidden_BTH.reshape(-1, H)[:TILE]
    x_CV = torch.log_softmax(tile_CH @ inputs.weight_VH.t(), dim=-1)
    pieces = [x_CV, x_CV.exp(), x_CV.expm1(), x_CV.sigmoid(), x_CV.exp().log(), x_CV.sum(1), x_CV.t() @ tile_CH]
    pieces += [x_CV @ inputs.weight_VH, inputs.advantages_B1.exp(), inputs.targets_BT.float().exp()]
    return hashlib.sha256(bits(torch.cat([piece.reshape(-1) for piece in pieces])).encode()).hexdigest()


def results() -> dict[str, Any]:
    losses._BLOCK = BLOCK
    return {name: computed(*case) for name, case in cases().items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {"torch": torch.__version__, "arithmetic": arithmetic(), "cases": results()}
    Path(sys.argv[1]).write_text(json.dumps(found, indent=0, sort_keys=True) + "\n", encoding="utf-8")
