"""What is said of a step's experts, against numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlreason.diagnose.experts import balance_shares, layers_of, scalars_of
from rlreason.objective.batch import ExpertCounts


def counts(load: list[list[int]], agreed: tuple[int, int], chosen: int = 1, compared: int = 100) -> ExpertCounts:
    return ExpertCounts(
        chosen=chosen,
        load_LE=torch.tensor(load),
        compared_L=torch.tensor([compared, compared]),
        agreed_L=torch.tensor(agreed),
    )


def test_numbers_by_hand() -> None:
    found = layers_of(counts([[60, 20, 20, 0], [25, 25, 25, 25]], (90, 100)))
    entropy = -(0.6 * math.log(0.6) + 2 * 0.2 * math.log(0.2)) / math.log(4)
    assert found["load"] == [[0.6, 0.2, 0.2, 0.0], [0.25] * 4]
    assert found["entropy"] == [pytest.approx(entropy), pytest.approx(1.0)]
    assert found["max_violation"] == [pytest.approx(0.6 / 0.25 - 1), pytest.approx(0.0)]
    assert found["dead"] == [0.25, 0.0]
    assert found["agreement"] == [0.9, 1.0]
    scalars = scalars_of(found)
    assert scalars["experts/entropy"] == pytest.approx((entropy + 1) / 2)
    assert scalars["experts/entropy_worst"] == pytest.approx(entropy)
    assert scalars["experts/max_violation_worst"] == pytest.approx(1.4)
    assert (scalars["experts/dead"], scalars["experts/dead_worst"]) == (0.125, 0.25)
    assert (scalars["experts/agreement"], scalars["experts/agreement_worst"]) == (0.95, 0.9)


def test_the_least_that_two_experts_a_token_can_have_is_zero() -> None:
    always = layers_of(counts([[50, 50, 0, 0], [25, 25, 25, 25]], (0, 0), chosen=2))
    assert always["entropy"] == [pytest.approx(0.0, abs=1e-12), pytest.approx(1.0)]


def test_few_tokens_say_nothing_of_dead_experts_and_nobody_was_compared() -> None:
    found = layers_of(counts([[79, 0, 0, 0], [79, 0, 0, 0]], (0, 0), compared=0))
    assert not {"dead", "agreement"} & set(found)


def test_the_share_of_the_balancing_loss() -> None:
    """Norms of 3 and 1, and of 1 and 4: shares of 3/4 and 1/5; the worst is the largest. Without any gradient: none."""
    squares_L2 = torch.tensor([[9.0, 1.0], [1.0, 16.0]], dtype=torch.float64)
    shares = balance_shares(squares_L2)
    assert shares == pytest.approx([0.75, 0.2])
    scalars = scalars_of({"balance_share": shares})
    assert scalars == {"experts/balance_share": pytest.approx(0.475), "experts/balance_share_worst": 0.75}
    assert balance_shares(torch.tensor([[9.0, 1.0], [0.0, 0.0]])) == []
