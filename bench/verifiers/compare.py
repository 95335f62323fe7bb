"""Ours against other verifiers on the same cases, in one run, on one machine.

    python bench/verifiers/compare.py --data ../shared/data \
        --peer math_verify=/path/to/venv/bin/python --peer mathruler=/path/to/venv/bin/python

Each verifier runs in the interpreter given for it. Results go to bench/verifiers/results/compare.json and, as a table,
to the marked block of docs/verifiers.md.
"""

import argparse
import json
import platform
import random
import selectors
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from cases import ROOT, Case, load_cases, response_of, wilson
from documents import replace_block

_KILL_SECONDS = 22.0
_RESULTS = ROOT / "bench" / "verifiers" / "results" / "compare.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What one verifier did. Example: ``Scores(name="ours", cases=821, right=810, ...)``."""

    name: str
    cases: int
    right: int
    false_positives: int
    unequal: int
    false_negatives: int
    equal: int
    variants_right: int
    variants: int
    public_right: int
    public_false_positives: int
    public: int
    attacks_right: int
    attacks_false_positives: int
    attacks: int
    hostile_right: int
    hostile_in_budget: int
    hostile: int
    #: pairs per CPU-second on MATH-500 answers
    respelled: float
    wrong: float


class Peer:
    """A verifier in its own process; killed and started again when one pair takes too long."""

    def __init__(self, name: str, python: str) -> None:
        self.name, self.python = name, python
        self.start()

    def start(self) -> None:
        script = Path(__file__).with_name("peer.py")
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['peer', {self.name!r}]; "
        code += f"exec(open({str(script)!r}).read())"
        self.process = subprocess.Popen(
            [self.python, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if not self.line(120.0):
            raise SystemExit(f"{self.name} does not start with {self.python}")

    def line(self, seconds: float) -> str:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            return self.process.stdout.readline() if selector.select(seconds) else ""

    def grade(self, gold: str | tuple[str, ...], response: str) -> tuple[bool, float, float]:
        """(correct, CPU seconds, wall seconds); a pair past the limit is not correct."""
        assert self.process.stdin is not None
        started = time.perf_counter()
        try:
            self.process.stdin.write(json.dumps({"gold": gold, "response": response}) + "\n")
            self.process.stdin.flush()
            answer = self.line(_KILL_SECONDS)
        except OSError:
            answer = ""
        wall = time.perf_counter() - started
        if not answer:
            self.close()
            self.start()
            return False, wall, wall
        row = json.loads(answer)
        return bool(row["correct"]), float(row["cpu"]), wall

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def throughput(peer: Peer, pairs: list[tuple[str, str]]) -> float:
    return len(pairs) / sum(peer.grade(g, r)[1] for g, r in pairs)


def judged(peer: Peer, cases: list[Case]) -> tuple[int, int, int]:
    """(right, false positives, cases)"""
    got = [peer.grade(c.gold, response_of(c))[0] for c in cases]
    right = sum(g == c.equal for g, c in zip(got, cases, strict=True))
    return right, sum(g and not c.equal for g, c in zip(got, cases, strict=True)), len(cases)


def measure(peer: Peer, cases: list[Case], golds: list[str], *, hostile: bool) -> Scores:
    strict = [c for c in cases if c.group == "cases"]
    right = [peer.grade(c.gold, response_of(c))[0] for c in strict]
    variants = [c for c in cases if c.group == "variants"]
    variants_right = sum(peer.grade(c.gold, response_of(c))[0] == c.equal for c in variants)
    hostile_right = in_budget = count = 0
    for case in [c for c in cases if c.group == "hostile"] if hostile else []:
        correct, _, wall = peer.grade(case.gold, response_of(case))
        count += 1
        hostile_right += correct == case.equal
        in_budget += 1000 * wall <= case.budget_ms
    public, attacks = (judged(peer, [c for c in cases if c.group == group]) for group in ("public", "attacks"))
    rng = random.Random(0)
    say = "Therefore, the answer is $\\boxed{{{}}}$.".format
    return Scores(
        name=peer.name,
        cases=len(strict),
        right=sum(got == c.equal for got, c in zip(right, strict, strict=True)),
        false_positives=sum(got and not c.equal for got, c in zip(right, strict, strict=True)),
        unequal=sum(not c.equal for c in strict),
        false_negatives=sum(c.equal and not got for got, c in zip(right, strict, strict=True)),
        equal=sum(c.equal for c in strict),
        variants_right=variants_right,
        variants=len(variants),
        public_right=public[0],
        public_false_positives=public[1],
        public=public[2],
        attacks_right=attacks[0],
        attacks_false_positives=attacks[1],
        attacks=attacks[2],
        hostile_right=hostile_right,
        hostile_in_budget=in_budget,
        hostile=count,
        respelled=throughput(peer, [(g, say(g.replace("\\frac", "\\dfrac") + " ")) for g in golds]),
        wrong=throughput(peer, [(g, say(rng.choice(golds) + "+1")) for g in golds]),
    )


def table(scores: list[Scores]) -> str:
    head = (
        "| verifier | strict cases right | recall | false positives | public reports: right, false positives "
        "| attacks and variants of them | MATH-500 variants | hostile right / in time "
        "| pairs per CPU-s, respelled / wrong |\n|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(_table_row(s) for s in scores)


def _table_row(s: Scores) -> str:
    low, high = wilson(s.right, s.cases)
    hostile = f"{s.hostile_right} / {s.hostile_in_budget} of {s.hostile}" if s.hostile else "not run"
    return (
        f"| {s.name} | {s.right} of {s.cases}: {s.right / s.cases:.1%} ({low:.1%}–{high:.1%}) "
        f"| {1 - s.false_negatives / s.equal:.3f} | {s.false_positives} of {s.unequal} "
        f"| {s.public_right} of {s.public}: {s.public_right / s.public:.1%}, {s.public_false_positives} "
        f"| {s.attacks_right} of {s.attacks}: {s.attacks_right / s.attacks:.1%}, {s.attacks_false_positives} "
        f"| {s.variants_right / s.variants:.1%} | {hostile} | {s.respelled:,.0f} / {s.wrong:,.0f} |\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with verifier_cases/ and math500.jsonl")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--no-hostile", action="store_true", help="leave the hostile answers out (minutes for some)")
    options = parser.parse_args()
    cases = load_cases(options.data)
    with (options.data / "math500.jsonl").open(encoding="utf-8") as lines:
        golds = [str(json.loads(line)["answer"]) for line in lines]
    scores = []
    for spec in [f"ours={sys.executable}", *options.peer]:
        name, _, python = spec.partition("=")
        peer = Peer(name, python)
        scores.append(measure(peer, cases, golds, hostile=not options.no_hostile))
        peer.close()
        print(_table_row(scores[-1]), end="", flush=True)
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    _RESULTS.parent.mkdir(exist_ok=True)
    _RESULTS.write_text(json.dumps({"machine": machine, "scores": [asdict(s) for s in scores]}, indent=1) + "\n")
    replace_block(ROOT / "docs" / "verifiers.md", "compare", table(scores) + f"\nOne run on one core ({machine}).\n")


if __name__ == "__main__":
    main()
