"""What is read back from the journal of reject and eval stages counts in the ledger as what was drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlreason.run.manifest import StageEntry
from rlreason.sizing.shape import Attention, ModelShape
from rlreason.stages.drawing import DrawnJournal
from rlreason.stages.ledger import Measured, Meter
from rlreason.types import Completion, Group, Problem, RewardResult, Verdict

PROBLEM = Problem(id="p1", prompt="q", verifier="math", reference="1")


def shape() -> ModelShape:
    one = Attention(heads=4, key_width=8, value_width=8, cached=32, cuts=2, window=None)
    return ModelShape(
        total=1000, active=1000, layer_products=300, last_products=0, head=100, outside=100, layer_parts=((450, 0),),
        routed_layers=0, vocabulary=10, hidden=10, plain_head=True, experts=0, chosen=0, routed=0, attention=(one, one),
    )  # fmt: skip


def drawn() -> Group:
    """Two answers of 50 and 20 tokens to a prompt of 200."""
    completions = tuple(
        Completion(
            prompt_ids=np.arange(200), token_ids=np.arange(count), sampler_logprobs=None, text="x", finish_reason="stop"
        )
        for count in (50, 20)
    )
    reward = RewardResult(score=1.0, verdict=Verdict.CORRECT)
    return Group(group_id="traces/0/p1", problem=PROBLEM, completions_G=completions, rewards_G=(reward, reward))


def ledger(group: Group) -> tuple[int, float]:
    entry = StageEntry(name="traces", kind="reject")
    Meter(entry=entry, model=Measured(name="policy", shape=shape())).drawn([group])
    return entry.sampled_tokens, entry.work.sampling_flops


def test_a_group_from_the_journal_costs_what_it_cost(tmp_path: Path) -> None:
    """By hand: 250 and 220 positions of 2 x 300, half their squares of 2 layers x 2 x 4 x (8 + 8), and 70 heads."""
    journal = DrawnJournal(path=tmp_path / "drawn.journal")
    group = drawn()
    journal.add(group)
    again = journal.read([PROBLEM], "traces/0")["traces/0/p1"]
    expected = 470 * 600 + (250**2 + 220**2) / 2 * 256 + 70 * 200
    assert ledger(group) == (70, pytest.approx(expected))
    assert ledger(again) == ledger(group)


def test_a_journal_of_before_is_read(tmp_path: Path) -> None:
    """Its lines don't say how long the prompt was."""
    journal = DrawnJournal(path=tmp_path / "drawn.journal")
    journal.add(drawn())
    row = json.loads(journal.path.read_text())
    for one in row["completions"]:
        assert one.pop("prompt_tokens") == 200
    journal.path.write_text(json.dumps(row) + "\n")
    again = journal.read([PROBLEM], "traces/0")["traces/0/p1"]
    assert [len(one.token_ids) for one in again.completions_G] == [50, 20]
    assert ledger(again)[0] == 70
