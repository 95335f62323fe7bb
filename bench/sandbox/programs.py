"""The programs that every way of running them gets: right and wrong ones, with tests and the verdict they deserve."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# This checkout's rlreason, and documents.py, which all benchmarks share.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from documents import replace_block

ROOT = Path(__file__).resolve().parents[2]
_DOCUMENT = ROOT / "docs" / "sandbox.md"


def fill_block(name: str, text: str) -> None:
    """Put ``text`` into the block ``name`` of docs/sandbox.md."""
    replace_block(_DOCUMENT, name, text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One program with its tests. Example: ``Task(source="print(1)", tests={"type": "stdin", ...}, correct=True)``.

    ``asserts`` says the same as function ``tests`` as Python text, for ways that run tests beside the program.
    """

    source: str
    tests: dict[str, object]
    correct: bool
    asserts: str = ""


#: name -> (program, a part of it, what makes it wrong, inputs)
_STDIN = {
    "sum": ("a, b = map(int, input().split())\nprint(a + b)", "a + b", "a - b", ["1 2", "-3 9", "0 7", "5 5"]),
    "reverse": (
        "import sys\nfor line in sys.stdin.read().splitlines():\n    print(line[::-1])",
        "::-1",
        "::1",
        ["ab\ncd", "xyz", "aab"],
    ),
    "primes": (
        "n = int(input())\nprint(*[p for p in range(2, n + 1) if all(p % d for d in range(2, p))])",
        "n + 1",
        "n - 1",
        ["30", "97", "5"],
    ),
    "counts": (
        "from collections import Counter\nfor word, n in sorted(Counter(input().split()).items()):\n    print(word, n)",
        "print(word, n)",
        "print(word, n + 1)",
        ["a b a", "x x x y", "one"],
    ),
    "heap": (
        "import heapq, sys\nxs = list(map(int, sys.stdin.read().split()))\nheapq.heapify(xs)\n"
        "print(*[heapq.heappop(xs) for _ in range(len(xs))])",
        "len(xs))",
        "len(xs) - 1)",
        ["5 3 9 1", "2 2 1", "7 6"],
    ),
    "gcd": (
        "import math\nfor _ in range(int(input())):\n    a, b = map(int, input().split())\n    print(math.gcd(a, b))",
        "gcd",
        "lcm",
        ["2\n12 18\n7 21", "1\n100 75"],
    ),
}  # fmt: skip


def _run_here(source: str, given: str) -> str:
    """What one of the programs above prints, in this process: they are ours and harmless."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", source], input=given, capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout


def stdin_tasks() -> list[Task]:
    """Programs that read stdin, each right and wrong."""
    tasks = []
    for source, old, new, inputs in _STDIN.values():
        cases = [{"input": f"{given}\n", "output": _run_here(source, f"{given}\n")} for given in inputs]
        tests: dict[str, object] = {"type": "stdin", "cases": cases}
        tasks.append(Task(source=source, tests=tests, correct=True))
        tasks.append(Task(source=source.replace(old, new), tests=tests, correct=False))
    return tasks


def _cases(check: str) -> Iterator[tuple[ast.Assert, list[object], object]]:
    """Asserts of the form ``candidate(plain data) == plain data`` that survive JSON."""
    for node in ast.walk(ast.parse(check)):
        if not (isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare)):
            continue
        left, right = node.test.left, node.test.comparators[0]
        if not (isinstance(left, ast.Call) and isinstance(node.test.ops[0], ast.Eq) and not left.keywords):
            continue
        try:
            args = [ast.literal_eval(one) for one in left.args]
            expected = ast.literal_eval(right)
        except ValueError:
            continue
        if json.loads(json.dumps([args, expected])) == [args, expected]:
            yield node, args, expected


def function_tasks(data: Path) -> list[Task]:
    """HumanEval where the tests are plain cases: each reference solution, and one that returns None."""
    tasks = []
    for line in (data / "humaneval.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found = list(_cases(row["tests"]["code"]))
        if not found:
            continue
        name = row["tests"]["entry_point"]
        tests = {
            "type": "function",
            "entry_point": name,
            "cases": [{"args": args, "expected": expected} for _, args, expected in found],
        }
        body = "\n".join(f"    {ast.unparse(node)}" for node, _, _ in found)
        asserts = f"def check(candidate):\n{body}\n"
        right = row["prompt"] + row["solution"]
        wrong = f"{right}\n\ndef {name}(*args):\n    return None\n"
        expected_none = any(expected is None for _, _, expected in found)
        tasks.append(Task(source=right, tests=tests, correct=True, asserts=asserts))
        tasks.append(Task(source=wrong, tests=tests, correct=expected_none and len(found) == 1, asserts=asserts))
    return tasks
