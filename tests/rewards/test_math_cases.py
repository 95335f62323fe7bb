"""Equality of answers: our own table, options, references, undecidable golds."""

from pathlib import Path

import pytest

from rlreason.rewards.math.answer import check
from rlreason.rewards.math.values import Options
from rlreason.types import Verdict

TABLE = [
    line
    for path in sorted(Path(__file__).parent.glob("math_cases*.txt"))
    for line in path.read_text(encoding="utf-8").splitlines()
]
CASES = [(line[0], *line[2:].split(" @@ ")) for line in TABLE if line and line[0] in "=!>"]


def verdict(gold: object, answer: str, options: Options | None = None) -> Verdict:
    return check(f"so \\boxed{{{answer}}}.", gold, options).verdict  # type: ignore[arg-type]


@pytest.mark.parametrize(("sign", "gold", "answer"), CASES, ids=[f"{c[1]} {c[0]} {c[2]}" for c in CASES])
def test_table(sign: str, gold: str, answer: str) -> None:
    assert (verdict(gold, answer) is Verdict.CORRECT) == (sign != "!")
    if sign != ">":
        assert (verdict(answer, gold) is Verdict.CORRECT) == (sign != "!")


@pytest.mark.parametrize(
    ("gold", "answer", "options", "right"),
    [
        ("1, 2", "2, 1", Options(), True),
        ("1, 2", "2, 1", Options(ordered=True), False),
        ("1, 2", "1, 2", Options(ordered=True), True),
        ("\\{1, 2\\}", "\\{2, 1\\}", Options(ordered=True), True),
        ("3.14", "\\pi", Options(), False),
        ("3.14", "\\pi", Options(tolerance=0.001), True),
        ("3.14", "3.1", Options(tolerance=0.001), False),
        ("100", "100.05", Options(tolerance=0.001), True),
        ("(1, 3.14)", "(1, \\pi)", Options(tolerance=0.001), True),
        ("10 \\text{ cm}", "10", Options(), True),
        ("10 \\text{ cm}", "10", Options(units=True), False),
        ("10 \\text{ cm}", "0.1\\text{ m}", Options(units=True), True),
        ("5000 \\text{ W}", "5\\text{ kW}", Options(units=True), True),
        ("5 \\text{ W}", "5\\text{ kW}", Options(units=True), False),
        ("5 \\text{ apples}", "5", Options(units=True), True),
        ("20", "20\\%", Options(), True),
        ("20", "20\\%", Options(percent_as_unit=False), False),
        ("0.2", "20\\%", Options(), True),
        ("0.2", "0.2\\%", Options(), False),
    ],
)
def test_options(gold: str, answer: str, options: Options, right: bool) -> None:
    assert (verdict(gold, answer, options) is Verdict.CORRECT) == right


def test_one_of_several_golds() -> None:
    assert verdict(("7", "\\frac{1}{2}"), "0.5") is Verdict.CORRECT
    assert verdict(("7", "\\frac{1}{2}"), "0.6") is Verdict.WRONG
    assert verdict(("\\frac{1}{", "0.5"), "0.5") is Verdict.CORRECT


def test_options_of_one_problem() -> None:
    assert verdict({"answer": "1, 2", "ordered": True}, "2, 1") is Verdict.WRONG
    assert verdict({"answer": ["3", "1, 2"], "ordered": True}, "1, 2") is Verdict.CORRECT
    assert verdict({"answer": "3.14", "tolerance": 0.01}, "3.15") is Verdict.CORRECT
    assert verdict({"answer": "3.14", "tolerence": 0.01}, "3.15") is Verdict.BROKEN
    assert verdict({"gold": "3.14"}, "3.14") is Verdict.BROKEN
    assert verdict({"answer": 3}, "3") is Verdict.BROKEN


@pytest.mark.parametrize("gold", ["", "  ", "\\frac{1}{", "(((", "\\text{", "^", "1 2 3 4 +", "nan", ()])
def test_an_unreadable_gold_gives_no_score(gold: object) -> None:
    for answer in ("5", "0", "1", "\\frac{0}{0}", "nan"):
        result = check(f"\\boxed{{{answer}}}", gold)  # type: ignore[arg-type]
        assert (result.score, result.verdict) == (None, Verdict.BROKEN)


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("\\int_0^1 x^2 dx", "\\frac{1}{3}", True),
        ("\\int_0^1 x^2 dx", "\\frac{1}{4}", False),
        ("\\sum_{k=1}^{\\infty} \\frac{1}{k^2}", "\\frac{\\pi^2}{6}", True),
        ("\\lim_{x\\to 0} \\frac{\\sin x}{x}", "1", True),
    ],
)
def test_sympy_decides_the_rest(gold: str, answer: str, right: bool) -> None:
    assert (verdict(gold, answer) is Verdict.CORRECT) == right


def test_sympy_past_its_limit_is_timed_out() -> None:
    result = check("\\boxed{1}", "\\int_0^{\\infty} e^{-x^{x^{x}}} \\sin(x^{7}) \\ln(1+x^3) dx")
    assert (result.score, result.verdict) == (None, Verdict.TIMED_OUT)


@pytest.mark.parametrize("levels", [10, 45])
def test_nested_integrals_and_long_connections_end(levels: int) -> None:
    for answer in (
        "\\int_0^1 " * levels + "x dx",
        "a in " * 700,
        "7" + "," * 3900 + "R",
        "2[" * 1900,
        "5 ( a ) " * 400,
    ):
        assert verdict("5", answer) is Verdict.WRONG


def test_long_lists_in_another_order() -> None:
    numbers = [str(n) for n in range(1, 300)]
    assert verdict(",".join(numbers), ",".join(reversed(numbers))) is Verdict.CORRECT
    assert verdict(",".join(numbers), ",".join(["7", *numbers[:-1]])) is Verdict.WRONG


def test_an_undone_integral_does_not_answer_a_number() -> None:
    assert verdict("\\frac{1}{3}", "\\int_0^1 x^2 dx") is Verdict.WRONG


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("P(x, y) \\text{ is constant", "P(x, y) \\text{ is constant}", True),
        ("There is no such number } k.", "\\text{There is no such number } k.", True),
        ("Triangle } ABC \\text{ can be drawn.", "\\text{Triangle } ABC \\text{ can be drawn.}", True),
        ("Triangle } ABC \\text{ can be drawn.", "\\text{Triangle } ABC \\text{ cannot be drawn.}", False),
        ("The solution set is } (0, \\infty)", "(0, \\infty)", True),
        ("The solution set is } (0, \\infty)", "(0, 1)", False),
    ],
)
def test_golds_cut_off_at_a_brace(gold: str, answer: str, right: bool) -> None:
    assert (verdict(gold, answer) is Verdict.CORRECT) == right


def test_a_number_in_words_counts_in_a_gold_only() -> None:
    assert verdict("\\text{seven}", "7") is Verdict.CORRECT
    assert verdict("7", "\\text{seven}") is Verdict.WRONG
    assert verdict("\\text{seven}", "\\text{Seven}") is Verdict.CORRECT
    assert verdict("7", "seven") is Verdict.CORRECT


def test_same_answer_whatever_ran_before() -> None:
    pairs = [(g, a) for _, g, a in CASES]
    first = [verdict(g, a) for g, a in pairs]
    assert [verdict(g, a) for g, a in reversed(pairs)] == first[::-1]
