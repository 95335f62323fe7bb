"""The experiment on ways of teaching: claims are judged by the rule fixed first, and the page says what came."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "distill" / "results" / "experiment.json"
ARMS = ("1 verified", "2 unfiltered", "4 grpo", "5 opd", "8 fixed")


@pytest.fixture(scope="module")
def claims() -> ModuleType:
    spec = importlib.util.spec_from_file_location("claims", ROOT / "bench" / "distill" / "claims.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answers(right: int, of: int = 100) -> str:
    """The first so many are right."""
    return "1" * right + "0" * (of - right)


def seeds(opd: tuple[int, int, int], verified: tuple[int, int, int]) -> dict[str, dict[str, str]]:
    """Everything but two arms equal in all three seeds."""
    return {
        str(seed): dict.fromkeys(ARMS, answers(50)) | {"5 opd": answers(a), "1 verified": answers(b)}
        for seed, (a, b) in enumerate(zip(opd, verified, strict=True))
    }


def test_a_difference_by_hand(claims: ModuleType) -> None:
    """20 of 100 problems better in every seed: 0.2, error sqrt(0.2 * 0.8 / 99), Holm's first level 0.05 / 4."""
    first = claims.judged(seeds((70, 70, 70), (50, 50, 50)))[0]
    error = math.sqrt(0.16 / 99)
    assert first["mean"] == pytest.approx(0.2)
    assert first["error"] == pytest.approx(error)
    z = 2.4977054744  # of the normal distribution, 1 - 0.0125 / 2
    assert first["interval"] == pytest.approx([0.2 - z * error, 0.2 + z * error])
    assert (first["t"], first["made"]) == (0.0, True)


@pytest.mark.parametrize(
    ("opd", "made"),
    [((70, 70, 70), True), ((90, 90, 49), False), ((51, 51, 51), False), ((30, 30, 30), False)],
    ids=["better everywhere", "one seed disagrees", "too little", "worse everywhere"],
)
def test_a_claim_is_made_where_all_seeds_agree_and_the_interval_is_above_0(
    claims: ModuleType, opd: tuple[int, int, int], made: bool
) -> None:
    assert claims.judged(seeds(opd, (50, 50, 50)))[0]["made"] is made


def test_the_page_says_what_was_recorded(claims: ModuleType) -> None:
    """Claims are judged anew from the answers to each problem."""
    document = json.loads(RESULTS.read_text(encoding="utf-8"))
    judged = claims.judged({seed: one["greedy"] for seed, one in document["seeds"].items()})
    assert judged == document["claims"]
    page = (ROOT / "docs" / "distill.md").read_text(encoding="utf-8")
    assert f"<!-- experiment -->\n{claims.table(document)}\n<!-- /experiment -->" in page
    for name, by_rate in document["tuning"].items():  # the rates' table too
        shown = name.replace("6 sampled", "6 opd sampled").replace("fixed", "fixed advantage")
        row = next(line for line in page.splitlines() if line.replace("`", "").lower().startswith(f"| {shown}, "))
        cells = [cell.strip() for cell in row.split("|")[2:-1]]
        assert [float(cell.strip("*")) for cell in cells] == [pytest.approx(100 * one) for one in by_rate.values()]
        assert [cell.startswith("**") for cell in cells] == [one == max(by_rate.values()) for one in by_rate.values()]
