"""The labelled cases, hostile answers and golds of the shared data: error rates, time budgets, self-verification."""

import json
import os
import random
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlreason.rewards.math.answer import check, gold_answer, same_answer
from rlreason.rewards.math.values import Options
from rlreason.score_file import score_file
from rlreason.types import Verdict

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the shared data sets in {DATA}")
APART = ("hostile_math", "math500_variants", "public_2026_11")
GOLD_SETS = str.split(
    "gsm8k_train gsm8k_test math_train math_test math500 aime24 aime25 amc23 olympiadbench "
    "deepscaler_10k bigmath_tinyv_5k"
)


def rows(name: str) -> Iterator[dict[str, object]]:
    with (DATA / f"{name}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def response(case: dict[str, object], *, boxed: bool) -> str:
    return f"\\boxed{{{case['pred']}}}" if boxed and case["mode"] == "answer" else str(case["pred"])


def is_correct(case: dict[str, object], *, boxed: bool = True) -> bool:
    gold = case["gold"]
    reference = tuple(gold) if isinstance(gold, list) else str(gold)
    return check(response(case, boxed=boxed), reference).verdict is Verdict.CORRECT


@pytest.mark.parametrize("boxed", [True, False], ids=["in a box", "bare"])
def test_labelled_cases(boxed: bool) -> None:
    names = [p.stem for p in sorted((DATA / "verifier_cases").glob("*.jsonl")) if p.stem not in APART]
    cases = [c for name in names for c in rows(f"verifier_cases/{name}") if not c.get("debatable")]
    right = [is_correct(c, boxed=boxed) == c["equal"] for c in cases]
    unequal = [c for c in cases if not c["equal"]]
    false_positives = [c for c in unequal if is_correct(c, boxed=boxed)]
    assert sum(right) / len(cases) >= 0.97
    assert len(false_positives) <= 0.004 * len(unequal), false_positives


@pytest.mark.parametrize(("kind", "right", "false_positives"), [("public", 418, 0), ("variants", 363, 0)])
def test_public_formats_are_judged_no_worse_than_measured(kind: str, right: int, false_positives: int) -> None:
    """Public reports and gold formats (418), and variants and attacks made of them (364): what is measured today."""
    cases = [c for c in rows("verifier_cases/public_2026_11") if c["set"] == kind and not c.get("debatable")]
    found = [is_correct(c) for c in cases]
    assert sum(one == c["equal"] for one, c in zip(found, cases, strict=True)) >= right
    assert sum(one and not c["equal"] for one, c in zip(found, cases, strict=True)) <= false_positives


@pytest.mark.parametrize("boxed", [True, False], ids=["in a box", "bare"])
def test_math500_variants(boxed: bool) -> None:
    wrong = [c for c in rows("verifier_cases/math500_variants") if is_correct(c, boxed=boxed) != c["equal"]]
    assert wrong == []


@pytest.mark.parametrize("boxed", [True, False], ids=["in a box", "bare"])
def test_hostile_answers(boxed: bool) -> None:
    # Their time budgets are measured by bench/verifiers/error_table.py.
    wrong = [
        (case["attack"], case["why"])
        for case in rows("verifier_cases/hostile_math")
        if is_correct(case, boxed=boxed) != case["equal"] and not case.get("debatable")
    ]
    assert wrong == []


@pytest.mark.parametrize("name", GOLD_SETS)
def test_golds_verify_themselves(name: str) -> None:
    golds = [str(r["answer"]) for r in rows(name)]
    own = {g: check(f"\\boxed{{{g}}}", g).verdict is Verdict.CORRECT for g in set(golds)}
    assert sum(own[g] for g in golds) / len(golds) >= 0.995


def accepted_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of different golds that verify against each other: ``count`` golds against 1,000 others each."""
    texts = sorted({str(r["answer"]) for name in GOLD_SETS for r in rows(name)})
    golds = [gold_answer(t) for t in texts]
    rng, options = random.Random(seed), Options()
    pairs = []
    for i in rng.sample(range(len(golds)), count):
        for j in rng.sample(range(len(golds)), 1000):
            if i != j and same_answer(golds[i], golds[j], options):
                pairs.append((texts[i], texts[j]))
    return pairs


def test_golds_do_not_verify_others() -> None:
    # True equals (1/2 and 0.5, 4 and 4 cm) are about 1 in 10,000 pairs; docs/verifiers.md lists a sample of them.
    assert len(accepted_pairs(25, seed=5)) <= 12


def test_labelled_model_answers() -> None:
    disagree: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for name in ("gsm8k_model_solutions", "qwen_rm_maj_math100", "prime_rl_rollouts", "sky_t1_traces"):
        for row in rows(name):
            total[name] += 1
            verdict = check(str(row["response"]), str(row["answer"])).verdict
            disagree[name] += (verdict is Verdict.CORRECT) != row["correct"]
    # Labels are rules themselves: one of qwen_rm is wrong (10{,}000 is 10000), two traces never leave their thought.
    assert disagree["gsm8k_model_solutions"] == 0
    assert all(disagree[name] / total[name] <= 0.02 for name in total), disagree


def mixed_file(path: Path, count: int) -> list[object]:
    """``count`` rows, one in a hundred hostile; ids of the rows."""
    golds = [str(r["answer"]) for r in rows("math500")]
    hostile = list(rows("verifier_cases/hostile_math"))
    with path.open("w", encoding="utf-8") as out:
        for i in range(count):
            gold, answer = golds[i % len(golds)], f"\\boxed{{{golds[(i * 7 + i // 3) % len(golds)]}}}"
            if i % 100 == 50:
                case = hostile[(i // 100) % len(hostile)]
                gold, answer = str(case["gold"]), response(case, boxed=True)
            out.write(json.dumps({"id": i, "response": answer, "reference": gold}) + "\n")
    return list(range(count))


def check_file(tmp_path: Path, count: int) -> None:
    ids = mixed_file(tmp_path / "in.jsonl", count)
    counts = score_file("math", tmp_path / "in.jsonl", tmp_path / "out.jsonl", workers=2, timeout=5.0)
    with (tmp_path / "out.jsonl").open(encoding="utf-8") as lines:
        out = [json.loads(line) for line in lines]
    assert [r["id"] for r in out] == ids
    assert sum(counts.values()) == count
    assert "timed_out" not in counts
    hostile = list(rows("verifier_cases/hostile_math"))
    for r in out[50::100]:
        case = hostile[(r["id"] // 100) % len(hostile)]
        assert case.get("debatable") or (r["verdict"] == "correct") == case["equal"]


def test_a_file_with_hostile_rows(tmp_path: Path) -> None:
    check_file(tmp_path, 3000)
    score_file("math", tmp_path / "in.jsonl", tmp_path / "one.jsonl", workers=1)
    two, one = ((tmp_path / name).read_text(encoding="utf-8").splitlines() for name in ("out.jsonl", "one.jsonl"))
    drop = re.compile(r'"seconds": [0-9.e-]+')
    assert [drop.sub("", line) for line in one] == [drop.sub("", line) for line in two]


@pytest.mark.slow
def test_a_large_file_with_hostile_rows(tmp_path: Path) -> None:
    # Two workers are killed while they work: nothing is lost, no verdict changes.
    killers = [threading.Timer(seconds, kill_a_worker) for seconds in (3.0, 6.0)]
    for killer in killers:
        killer.start()
    check_file(tmp_path, 100_000)
    for killer in killers:
        killer.join()


def kill_a_worker() -> None:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            command = stat.with_name("cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and "rlreason.rewards.worker" in command:
            os.kill(int(stat.parent.name), signal.SIGKILL)
            return
    raise AssertionError("no worker to kill")
