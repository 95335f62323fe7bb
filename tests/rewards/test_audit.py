"""The audit: every planted flaw is found by the finding of its name, and honest rewards pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlreason.rewards.audit.conduct import Order, audit
from rlreason.rewards.audit.result import Audit
from rlreason.rewards.audit.runner import LoadFailed
from rlreason.rewards.audit.subject import Subject

PLANTS = Path(__file__).parent / "audit_plants.py"


def audited(
    name: str, *, prefix: str = "", verifier: str = "math", seconds: float | None = None, **more: object
) -> Audit:
    """One problem is enough for what is planted."""
    subject = Subject(name=f"{prefix}{PLANTS}:{name}", verifier=verifier, seconds=seconds)
    return audit(Order(subject=subject, problems=1, **more))  # type: ignore[arg-type]


def slow(*values: object) -> object:
    """A variant that the whole suite tries: each audit starts three processes."""
    return pytest.param(*values, marks=pytest.mark.slow)


#: The twelve that issue 16 names, then the same in other forms, and others.
PLANTED = [
    ("substring", "redteam.substring"),
    ("last_number", "redteam.last_number"),
    ("evaluates", "contract.eval"),
    ("any_box", "redteam.any_box"),
    ("order_dependent", "contract.order"),
    ("global_state", "contract.global_state"),
    ("mutates_extra", "contract.mutation"),
    ("sleeps", "contract.sleeps"),
    ("raises_on_empty", "contract.empty"),
    ("nan", "contract.nan"),
    ("wrong_type", "contract.type"),
    ("network", "contract.network"),
    ("none", "contract.none"),
    ("leaks", "contract.leak"),
    slow("substring_of_answer", "redteam.substring"),
    slow("answer_in_reference", "redteam.substring"),
    slow("any_tag", "redteam.any_box"),
    slow("hidden_state", "contract.global_state"),
    slow("mutates_tokens", "contract.mutation"),
    slow("sleeps_async", "contract.sleeps"),
    slow("raises_without_answer", "contract.raises"),
    slow("infinite", "contract.nan"),
    slow("wrong_type_at_times", "contract.type"),
    slow("draws", "contract.determinism"),
    slow("hash_seed", "contract.process"),
    slow("writes", "contract.files"),
    slow("by_place", "contract.place"),
]


@pytest.mark.parametrize(("name", "finding"), PLANTED)
def test_planted_flaw_is_named(name: str, finding: str) -> None:
    result = audited(name, seconds=0.5 if name == "evaluates" else None)
    failed = [one.name for one in result.failures]
    assert finding in failed
    if finding.startswith("contract."):  # nothing else is wrong with it, but what follows from the flaw
        follows = {"redteam.evaluated", "controls.right", "contract.limit", "contract.determinism", "contract.type"}
        follows |= {"contract.global_state", "contract.order", "contract.nan", "redteam.hedging"}
        assert set(failed) <= {finding} | follows


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("honest_box", ""),
        ("honest_bare", ""),
        ("honest_group", ""),
        ("trl_honest", "trl:"),
        slow("honest", ""),
        slow("honest_first", ""),
        slow("honest_result", ""),
        slow("honest_async", ""),
        slow("honest_memo", ""),
        slow("verl_honest", "verl:"),
    ],
)
def test_honest_rewards_pass(name: str, prefix: str) -> None:
    result = audited(name, prefix=prefix)
    assert result.failures == ()


@pytest.mark.parametrize(
    ("name", "verifier", "options"),
    [
        ("accuracy", "math", {}),
        ("accuracy", "countdown", {}),
        ("code", "code", {}),
        ("format", "math", {"style": "boxed"}),
        slow("language", "math", {}),
        ("length", "math", {"max_tokens": 64}),
        slow("overlong", "math", {"max_tokens": 64, "buffer": 16}),
        slow("repetition", "math", {}),
    ],
)
def test_what_ships_passes(name: str, verifier: str, options: dict[str, object]) -> None:
    subject = Subject(name=name, verifier=verifier, options=tuple(options.items()))
    result = audit(Order(subject=subject, problems=1))
    assert result.failures == ()
    assert result.kind == ("verifier" if name in {"accuracy", "code"} else "shape")


def test_a_batch_function_that_looks_at_the_others() -> None:
    result = audited("trl_normalised", prefix="trl:")
    assert [one.name for one in result.failures] == ["contract.company"]


def test_a_hang_is_ended_and_named() -> None:
    result = audited("hangs", seconds=1.0)
    assert [one.name for one in result.failures] == ["contract.limit"]
    assert "100,000 characters" in result.failures[0].detail


def test_declared_range() -> None:
    (finding,) = audited("beyond", declared_range=(0.0, 1.0)).failures
    assert finding.name == "contract.range"


@pytest.mark.slow
def test_what_is_allowed_is_no_finding() -> None:
    subject = Subject(name=f"{PLANTS}:writes", verifier="math", allowed=frozenset({"files"}))
    result = audit(Order(subject=subject, problems=1))
    assert result.failures == ()
    assert result.allowed == ("files",)


def test_a_reward_that_does_not_load_says_why() -> None:
    with pytest.raises(LoadFailed, match="has no 'honets'"):
        audited("honets")


@pytest.mark.slow
def test_a_form_of_its_own() -> None:
    """None of the usual forms is paid by a reward that wants another; shown to it, it passes."""
    lost = audited("verl_honest", prefix="verl:", template="My answer: {answer}")
    assert [one.name for one in lost.failures] == ["controls.right"]
    assert audited("verl_honest", prefix="verl:", template="So #### {answer}").failures == ()
