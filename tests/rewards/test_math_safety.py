"""Random and hostile text: no exception, no hang, no growth, no code run; the same in every thread."""

import random
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlreason.rewards.math.answer import check, read, same_answer
from rlreason.rewards.math.values import Options
from rlreason.types import Verdict

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("math_cases.txt").read_text(encoding="utf-8").splitlines()
ANSWERS = [a for line in TABLE if line and line[0] in "=!>" for a in line[2:].split(" @@ ")]
PIECES = str.split(
    r"\frac \sqrt \sqrt[3] \left( \right) \{ \} { } ( ) [ ] ^ _ + - * / = < > \le \ge \ne , ; : ! % \% \pi e i "
    r"x y n 1 2 10 0 0.5 9999 \infty \cup \cap \in \pm \mp \sin \cos \ln \log \log_ \text{ \text{cm} \text{and} "
    r"\begin{pmatrix} \end{pmatrix} \begin{cases} \end{cases} & \\ \boxed{ \boxed | \mid ^\circ ' \overline "
    r"\sum_{k=1}^ \int_0^1 dx \lim_{x\to0} \binom \gcd( f( f(x) \lfloor \rfloor \mathbb{R} \emptyset $ \$ or "
    r"and 1,000 \, \! \quad ² ½ √ ∞ π 。 ， \pmod \choose \cdot \times \div 0.\overline{3} \mathrm{e} ** sqrt( "
    r"abs( Eq( 1e5 1e400 2^{2^{ 9^9^9 5! (10^9)! \Gamma( \arcsin x' \setminus \not \approx #### <think> "
    r"</think> <answer> </answer> km/h 25\text{%} 3:4 12:30 PM A (C) _{ }^ \mathrm{ ~ \det( Matrix([[ ... = ≈ "
)
GRAMMAR = st.lists(st.sampled_from(PIECES), min_size=1, max_size=40).flatmap(
    lambda pieces: st.sampled_from(["", " "]).map(lambda glue: glue.join(pieces))
)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """An answer of the table with a few places cut, doubled or overwritten."""
    text = draw(st.sampled_from(ANSWERS))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(text)))
        action = draw(st.integers(0, 3))
        if action == 0:
            text = text[:at] + text[at + draw(st.integers(1, 4)) :]
        elif action == 1:
            text = text[:at] + draw(st.sampled_from(PIECES)) + text[at:]
        elif action == 2:
            text = text[:at] + draw(st.characters()) + text[at:]
        else:
            text = text[:at] + text * 2
    return text


#: Seconds that tell a hang from a busy machine; how fast the verifier is stands in bench/verifiers.
HANGS = 20.0


def survives(text: str, gold: str) -> None:
    started = time.perf_counter()
    for response in (text, f"\\boxed{{{text}}}"):
        result = check(response, gold)
        assert result.verdict in Verdict
        assert (result.score is None) == (result.verdict in (Verdict.BROKEN, Verdict.TIMED_OUT))
    assert time.perf_counter() - started < HANGS  # a golden integral may take sympy to its limit of 3 s


relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@given(text=st.one_of(GRAMMAR, mutated()), gold=st.sampled_from(ANSWERS))
@settings(relaxed, max_examples=1500)
def test_any_text_gets_a_verdict(text: str, gold: str) -> None:
    survives(text, gold)


@given(gold=st.one_of(GRAMMAR, mutated()))
@settings(relaxed, max_examples=500)
def test_any_gold_gets_a_verdict(gold: str) -> None:
    result = check("\\boxed{7}", gold)
    assert result.verdict in Verdict


@pytest.mark.slow
@given(text=st.one_of(GRAMMAR, mutated()), gold=st.sampled_from(ANSWERS))
@settings(relaxed, max_examples=10_000)
def test_ten_thousand_texts(text: str, gold: str) -> None:
    survives(text, gold)


@given(text=st.one_of(GRAMMAR, mutated()))
@settings(relaxed, max_examples=1000)
def test_whatever_reads_equals_itself(text: str) -> None:
    answer = read(text)
    if answer.node is not None and "infty" not in text and "0" not in text:  # 0/0 and the like equal nothing
        assert same_answer(answer, answer, Options())


@given(st.sampled_from(ANSWERS), st.one_of(st.sampled_from(ANSWERS), mutated()))
@settings(relaxed, max_examples=1500)
def test_symmetric(one: str, other: str) -> None:
    a, b = read(one), read(other)
    if not (a.in_words or b.in_words):  # documented: a number in words counts in a gold only
        assert bool(same_answer(a, b, Options())) == bool(same_answer(b, a, Options()))


LEAVES = st.sampled_from(["x", "y", "2", "3", "\\pi", "\\sqrt{2}", "\\frac{1}{3}", "0.5", "\\sin x", "e^{x}"])
EXPRESSIONS = st.recursive(
    LEAVES.map(lambda leaf: (leaf, leaf)),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]}+{p[1][0]})", f"({p[1][1]}+{p[0][1]})")),
        st.tuples(inner, inner).map(lambda p: (f"{p[0][0]}\\cdot {p[1][0]}", f"({p[1][1]})({p[0][1]})")),
        inner.map(lambda p: (f"({p[0]})^2", f"({p[1]})({p[1]})")),
        inner.map(lambda p: (f"\\frac{{{p[0]}}}{{3}}", f"\\frac13({p[1]})")),
        inner.map(lambda p: (f"({p[0]}-1)", f"(-1+{p[1]})")),
    ),
    max_leaves=6,
)


@given(EXPRESSIONS)
@settings(relaxed, max_examples=300)
def test_rewritten_expressions_are_equal_and_shifted_ones_are_not(pair: tuple[str, str]) -> None:
    one, other = pair
    assert check(f"\\boxed{{{other}}}", one).verdict is Verdict.CORRECT
    assert check(f"\\boxed{{{other}+\\frac{{1}}{{1000}}}}", one).verdict is Verdict.WRONG


def test_memory_stays_flat() -> None:
    rng = random.Random(1)

    def run(count: int) -> int:
        for _ in range(count):
            text = " ".join(rng.choices(PIECES, k=rng.randrange(1, 200)))
            check(f"\\boxed{{{text}}}", rng.choice(ANSWERS))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = run(1500)
    assert run(3000) - before < 64 * 1024  # KiB


HOSTILE = [
    "999999999!",
    "\\frac{1}{(10^8)!}",
    "\\binom{10^9}{5*10^8}",
    "\\Gamma(10^{30})",
    "\\tan(10^{10^{10}})",
    "0.5^{10^{50}}",
    "\\lfloor 10^{10^9}\\rfloor",
    "\\gcd(10^{60000},3)",
    "\\lcm(2^{50000},3^{40000})",
    "e^{e^{e^{e^{e}}}}",
    "9^9^9^9",
    "\\max(" + ",".join(["2^{999}"] * 300) + ")",
    "+".join(f"\\sqrt{{{i}}}" for i in range(250)),
    "+".join(f"\\sin({i}x)" for i in range(200)),
    "\\sum_{k=1}^{400}\\sum_{j=1}^{400}\\sin(kj)",
    "\\prod_{k=1}^{10^9}(1+\\frac{1}{k^2})",
    "\\{x | \\sin(x^{50})>0.5\\}",
    "\\{" + ",".join(f"\\sqrt{{{i}}}" for i in range(390)) + "\\}",
    "\\text{" * 900 + "1" + "}" * 900,
    "(" * 100_000,
    "-" * 3000 + "1",
    "1" + "+1" * 1500,
    "\\frac{" * 3000,
    "x" + "^x" * 1000,
    "1,2," * 900,
    "|" * 3000,
    "\\boxed{" * 5000,
    "$" * 20_000,
    " " * 200_000,
    "1" * 1_000_000,
    "0." + "0" * 100_000 + "1",
    "__import__('os').system('true')",
]


@pytest.mark.parametrize("text", HOSTILE, ids=[t[:24] for t in HOSTILE])
@pytest.mark.parametrize("gold", ["2", "x^2", "\\{1, 2\\}", "(1, 2)", "\\text{even}", "\\sqrt{2}", "x = 5", "x > 3"])
def test_hostile_answers_are_refused_at_once(text: str, gold: str) -> None:
    check("\\boxed{\\sqrt{2}}", "\\sqrt{3}")
    started = time.thread_time()
    assert check(f"\\boxed{{{text}}}", gold).verdict is not Verdict.CORRECT
    assert time.thread_time() - started < HANGS


@pytest.mark.parametrize("depth", [1, 900, 1000, 5000, 100_000])
@pytest.mark.parametrize("boxes", ["\\boxed{", "\\fbox{ "])
def test_nested_boxes_hold_the_innermost_answer(depth: int, boxes: str) -> None:
    started = time.thread_time()
    assert check(boxes * depth + "42" + "}" * depth, "42").verdict is Verdict.CORRECT
    assert check(boxes * depth + "41" + "}" * depth, "42").verdict is Verdict.WRONG
    assert check(boxes * depth + "42" + "}" * (depth - 1), "42").verdict is not Verdict.BROKEN
    assert time.thread_time() - started < HANGS


FLOODS = [
    ("\n" * 200_000 + "The answer is 42", True),
    ("The answer is " * 50_000 + "42", True),
    ("Problem: x\n" * 50_000 + "The answer is 42", True),
    ("\\boxed{42}\n" + "Problem: x\n" * 50_000, True),
    ("\\boxed{42}" + "\\approx \\boxed{4}" * 20_000, True),
    ("so " * 100_000 + "42.", True),
    ("The answer is 4" + "?" * 200_000, False),
    ("The answer is " + "(" * 100_000, False),
    ("The answer is 42. " + "wait, it is 4. " * 50_000, False),
    ("<answer>" * 100_000, False),
    ("{" * 200_000 + "}", False),
    ("</s><s>" * 100_000, False),
    ("#" * 300_000, False),
    ("\\boxed{" + "\\color{red}" * 50_000 + "}", False),
]


@pytest.mark.parametrize(("response", "right"), FLOODS, ids=[text[:20] for text, _ in FLOODS])
def test_floods_of_marks_are_read_in_linear_time(response: str, right: bool) -> None:
    started = time.thread_time()
    assert (check(response, "42").verdict is Verdict.CORRECT) == right
    assert time.thread_time() - started < HANGS  # a square of these lengths takes minutes


def test_nothing_is_executed() -> None:
    """Audit hooks see every eval, exec, process and file opened while hostile answers are checked."""
    code = """
import sys
from rlreason.rewards.math.answer import check
for gold, answer in (("\\\\sqrt3", "\\\\sqrt2"), ("x^2+\\\\sin x", "y"), ("(1,2]", "x>3"), ("1,2", "2,1")):
    check(f"\\\\boxed{{{answer}}}", gold)
seen = []
sys.addaudithook(lambda event, args: seen.append(event))
for text in ("__import__('os').system('touch marker') or 7", "().__class__.__base__.__subclasses__()",
             "eval('7')", "lambda: 7", "open('marker','w')", "\\\\input{/etc/passwd}", "x.__class__", "7;import os"):
    for gold in ("7", "\\\\sqrt{2}", "x"):
        check(f"\\\\boxed{{{text}}}", gold)
        check(text, gold)
bad = [e for e in seen if e in ("exec", "compile", "open", "os.system", "subprocess.Popen", "import", "os.posix_spawn")]
assert not bad, bad
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_any_thread_gives_the_same_answer() -> None:
    pairs = list(zip(ANSWERS[::2], ANSWERS[1::2], strict=False))
    expected = [check(f"\\boxed{{{b}}}", a).verdict for a, b in pairs]
    results: dict[int, list[Verdict]] = {}

    def work(number: int) -> None:
        results[number] = [check(f"\\boxed{{{b}}}", a).verdict for a, b in pairs]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results[i] == expected for i in range(4))
