"""One advantage and one weight for all tokens of a sequence: the numbers of the code that knew nothing else, as bits.

``fixtures/one_advantage_per_sequence.json`` was written by ``PYTHONPATH=. python tests/objective/golden.py FILE`` in a
checkout of f782ad6, the last commit whose ``Batch`` had ``advantages_B1`` and ``weights_B1``: there ``golden.py``
imports ``Batch`` and ``LossOutput`` from ``rlreason.types``, and its ``batch()`` passes the two [B, 1] tensors
themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import golden
import pytest
import torch

from rlreason.objective import loss

K3 = "mismatch/k3"
RECORDED = json.loads(golden.FIXTURE.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _as_recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(loss, "_BLOCK", golden.BLOCK)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_case_was_recorded() -> None:
    assert golden.cases().keys() == RECORDED["cases"].keys()


@pytest.mark.parametrize("name", golden.cases())
def test_equal_advantages_of_tokens_are_the_sequence_s_own(name: str) -> None:
    """Bit for bit where this machine's torch computes exp, log and products to the recorded bits; else to 1e-5."""
    found, recorded = golden.computed(*golden.cases()[name]), RECORDED["cases"][name]
    assert found.keys() == recorded.keys()
    # The one number that was wrong then: r was π_sampler/π_trainer, and the tokens are the sampler's.
    assert golden.numbers(found.pop(K3)) == pytest.approx([k3_by_hand(*golden.cases()[name])], rel=1e-5)
    recorded = {key: text for key, text in recorded.items() if key != K3}
    if golden.arithmetic() == RECORDED["arithmetic"]:
        assert found == recorded
    for key, text in recorded.items():
        assert golden.numbers(found[key]) == pytest.approx(golden.numbers(text), rel=1e-5, abs=1e-6), key


def k3_by_hand(path: str, spec: golden.ObjectiveSpec, with_old: bool) -> float:
    """Σ r − 1 − log r over the loss tokens, r = π_old/π_sampler, in Python floats."""
    inputs = golden.Inputs()
    now_BT = inputs.now_BT
    if path == "head":
        now_BT = (inputs.hidden_BTH @ inputs.weight_VH.t()).log_softmax(-1)
        now_BT = now_BT.gather(2, inputs.targets_BT.unsqueeze(2)).squeeze(2)
    old_BT = inputs.old_BT if with_old else now_BT
    logs = (old_BT.double() - inputs.sampler_BT.double())[inputs.mask_BT > 0].tolist()
    return math.fsum(math.expm1(log) - log for log in logs)


def test_a_last_digit_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden.cases()["padded/grpo/old"]
    before = golden.computed(*case)
    plain = golden.Inputs.batch

    def moved(inputs: golden.Inputs) -> golden.Batch:
        batch = plain(inputs)
        at = tuple(batch.loss_mask_BT.nonzero()[3].tolist())
        batch.advantages_BT[at] = torch.nextafter(batch.advantages_BT[at], torch.tensor(9.0))
        return batch

    monkeypatch.setattr(golden.Inputs, "batch", moved)
    assert golden.computed(*case) != before
