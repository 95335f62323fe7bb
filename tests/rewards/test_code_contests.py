"""Contest problems that come without a solution: a right and a wrong program for eleven of them, written for this test.

The wrong program is the right one with one mistake, so that it also runs and prints something plausible.
"""

import json
from pathlib import Path

import pytest

from rlreason.rewards.programs.verifier import check_program
from rlreason.types import Verdict

DATA = Path(__file__).parents[3] / "shared" / "data" / "code_contests_80.jsonl"
pytestmark = pytest.mark.skipif(not DATA.is_file(), reason=f"needs the shared data set {DATA}")

#: Problem -> (right program, what is replaced in it, by what).
PROGRAMS = {
    "cc-0": (
        """
n, m = map(int, input().split())
words = [input().strip() for _ in range(n)]
def key(i):
    return [ord(c) if at % 2 == 0 else -ord(c) for at, c in enumerate(words[i])]
print(*[i + 1 for i in sorted(range(n), key=key)])
""",
        "-ord(c)",
        "ord(c)",
    ),
    "cc-1": (
        """
import math
n, k = map(int, input().split())
points = [tuple(map(int, input().split())) for _ in range(n)]
def most(r):
    # Centres lie at distance r of the origin: each point covers an arc of angles. Count the deepest overlap.
    always, events = 0, []
    for x, y in points:
        d = math.hypot(x, y)
        if d == 0:
            always += 1
        elif d <= 2 * r:
            at, half = math.atan2(y, x), math.acos(min(1.0, d / (2 * r)))
            for turn in (-2 * math.pi, 0, 2 * math.pi):
                events += [(at - half + turn, -1), (at + half + turn, 1)]
    depth = best = 0
    for _, kind in sorted(events):
        depth -= kind
        best = max(best, depth)
    return always + best
low, high = 0.0, 2e5 + 1
for _ in range(60):
    middle = (low + high) / 2
    if most(middle) >= k:
        high = middle
    else:
        low = middle
print("%.9f" % high)
""",
        "print(\"%.9f\" % high)",
        "print(\"%.9f\" % (high * 1.5 + 1))",
    ),
    "cc-13": (
        """
for _ in range(int(input())):
    s = input()
    print("YES" if s.count("B") == s.count("A") + s.count("C") else "NO")
""",
        's.count("A") + s.count("C")',
        's.count("A")',
    ),
    "cc-28": (
        """
for _ in range(int(input())):
    a, b, c = map(int, input().split())
    print((a + 2 * b + 3 * c) % 2)
""",
        "% 2",
        "% 3",
    ),
    "cc-29": (
        """
for _ in range(int(input())):
    input()
    a = list(map(int, input().split()))
    print(a.count(1) * 2 ** a.count(0))
""",
        "2 ** a.count(0)",
        "2",
    ),
    "cc-30": (
        """
def cost(s, letter):
    left, right, erased = 0, len(s) - 1, 0
    while left < right:
        if s[left] == s[right]:
            left, right = left + 1, right - 1
        elif s[left] == letter:
            left, erased = left + 1, erased + 1
        elif s[right] == letter:
            right, erased = right - 1, erased + 1
        else:
            return None
    return erased
for _ in range(int(input())):
    input()
    s = input().strip()
    costs = [c for c in (cost(s, letter) for letter in set(s)) if c is not None]
    print(min(costs) if costs else -1)
""",
        "in set(s))",
        "in sorted(s)[:1])",
    ),
    "cc-45": (
        """
for _ in range(int(input())):
    input()
    days = input().split()
    height, before = 1, None
    for day in days:
        if day == "0" and before == "0":
            height = -1
            break
        if day == "1":
            height += 5 if before == "1" else 1
        before = day
    print(height)
""",
        "5 if",
        "4 if",
    ),
    "cc-46": (
        """
for _ in range(int(input())):
    input()
    a = list(map(int, input().split()))
    count, top = 0, a[-1]
    for x in reversed(a):
        if x > top:
            count, top = count + 1, x
    print(count)
""",
        "x > top",
        "x >= top",
    ),
    "cc-47": (
        """
for _ in range(int(input())):
    n, k = map(int, input().split())
    xs = list(map(int, input().split()))
    total = 0
    for side in ([x for x in xs if x > 0], [-x for x in xs if x < 0]):
        total += 2 * sum(sorted(side, reverse=True)[::k])
    print(total - max(map(abs, xs)))
""",
        " - max(map(abs, xs))",
        "",
    ),
    "cc-52": (
        """
for _ in range(int(input())):
    n, k = map(int, input().split())
    total, power = 0, 1
    while k:
        if k % 2:
            total += power
        k //= 2
        power = power * n % (10**9 + 7)
    print(total % (10**9 + 7))
""",
        "power * n %",
        "power * 3 %",
    ),
    "cc-60": (
        """
from collections import Counter
for _ in range(int(input())):
    n = int(input())
    a = list(map(int, input().split()))
    pairs, seen = 0, Counter()
    if 2 * sum(a) % n == 0:
        goal = 2 * sum(a) // n
        for x in a:
            pairs += seen[goal - x]
            seen[x] += 1
    print(pairs)
""",
        "goal - x",
        "x",
    ),
}  # fmt: skip


def problems() -> dict[str, dict[str, object]]:
    with DATA.open(encoding="utf-8") as lines:
        return {row["id"]: row["tests"] for row in map(json.loads, lines)}


@pytest.mark.parametrize("key", PROGRAMS)
def test_right_program(key: str) -> None:
    result = check_program(PROGRAMS[key][0], problems()[key])
    assert (result.verdict, result.score) == (Verdict.CORRECT, 1.0), result.detail


@pytest.mark.parametrize("key", PROGRAMS)
def test_wrong_program(key: str) -> None:
    right, old, new = PROGRAMS[key]
    assert right.count(old) == 1
    result = check_program(right.replace(old, new), problems()[key])
    assert (result.verdict, result.score) == (Verdict.WRONG, 0.0), result.detail
