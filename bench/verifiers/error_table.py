"""Error rates of the math verifier by kind of answer, with 95 % intervals, written into docs/verifiers.md.

python bench/verifiers/error_table.py --data ../shared/data
"""

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path

from cases import ROOT, Case, load_cases, response_of, wilson
from documents import replace_block

from rlreason.rewards.math.answer import check, gold_answer, same_answer
from rlreason.rewards.math.values import Options
from rlreason.types import Verdict

_DOCUMENT = ROOT / "docs" / "verifiers.md"
_REASONS = Path(__file__).with_name("reasons.json")
_GOLDS = (
    "gsm8k_train",
    "gsm8k_test",
    "math_train",
    "math_test",
    "math500",
    "aime24",
    "aime25",
    "amc23",
    "olympiadbench",
    "deepscaler_10k",
    "bigmath_tinyv_5k",
)
_JUDGED = ("gsm8k_model_solutions", "qwen_rm_maj_math100", "prime_rl_rollouts", "sky_t1_traces")


def rows(data: Path, name: str) -> list[dict[str, object]]:
    with (data / f"{name}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def is_correct(case: Case) -> bool:
    return check(response_of(case), case.gold).verdict is Verdict.CORRECT


def share(right: int, count: int) -> str:
    if not count:
        return "–"
    low, high = wilson(right, count)
    return f"{right}/{count} = {right / count:.1%} ({low:.0%}–{high:.0%})"


def by_kind(cases: list[Case]) -> str:
    """Recall (equal pairs accepted) and precision (accepted pairs that are equal) of each kind."""
    kinds: dict[str, list[tuple[Case, bool]]] = defaultdict(list)
    for case in cases:
        kinds[case.kind].append((case, is_correct(case)))
        kinds["**all**"].append((case, kinds[case.kind][-1][1]))
    out = "| kind | cases | accuracy | recall | precision | false positives |\n|---|---|---|---|---|---|\n"
    for kind, judged in sorted(kinds.items(), key=lambda item: -len(item[1])):
        equal = [got for case, got in judged if case.equal]
        accepted = [case.equal for case, got in judged if got]
        wrongly = sum(got and not case.equal for case, got in judged)
        right = sum(got == case.equal for case, got in judged)
        out += (
            f"| {kind} | {len(judged)} | {share(right, len(judged))} | {share(sum(equal), len(equal))} "
            f"| {share(sum(accepted), len(accepted))} | {wrongly} of {len(judged) - len(equal)} |\n"
        )
    return out


def _by_set(cases: list[Case]) -> str:
    """The public reports, and the variants and attacks made after them: a row each, and their errors."""
    out = "| set | cases | accuracy | recall | precision | false positives |\n|---|---|---|---|---|---|\n"
    for group in ("public", "attacks"):
        out += by_kind([c for c in cases if c.group == group]).splitlines()[2].replace("**all**", group) + "\n"
    return out + "\n" + remaining([c for c in cases if c.group in ("public", "attacks")])


def remaining(cases: list[Case]) -> str:
    """Each error with its reason."""
    reasons: dict[str, str] = json.loads(_REASONS.read_text(encoding="utf-8"))
    out = ""
    for case in cases:
        if is_correct(case) != case.equal:
            kind = "not accepted" if case.equal else "**wrongly accepted**"
            reason = reasons.get(case.place, "not yet explained")
            out += f"- `{case.place}` {kind}: gold {_code(str(case.gold))}, answer {_code(case.pred)}. {reason}\n"
    return out or "None.\n"


def _code(text: str) -> str:
    text = text.replace("\n", " ").replace("`", "'")
    return f"`{text}`" if len(text) <= 70 else f"`…{text[-67:]}`"


def golds(data: Path) -> str:
    out = "| data set | golds | verify themselves | exceptions |\n|---|---|---|---|\n"
    for name in _GOLDS:
        texts = [str(r["answer"]) for r in rows(data, name)]
        bad = {t for t in set(texts) if check(f"\\boxed{{{t}}}", t).verdict is not Verdict.CORRECT}
        right = sum(t not in bad for t in texts)
        listed = "; ".join(_code(t) for t in sorted(bad))
        out += f"| {name} | {len(texts)} | {right / len(texts):.2%} | {listed or '–'} |\n"
    return out


def other_golds(data: Path, count: int) -> str:
    """Golds against 1,000 random other golds each: what is accepted."""
    texts = sorted({str(r["answer"]) for name in _GOLDS for r in rows(data, name)})
    answers = [gold_answer(t) for t in texts]
    rng, options = random.Random(7), Options()
    accepted, pairs = [], 0
    for i in rng.sample(range(len(texts)), count):
        for j in rng.sample(range(len(texts)), 1000):
            if i != j:
                pairs += 1
                if same_answer(answers[i], answers[j], options):
                    accepted.append(f"{_code(texts[i])} and {_code(texts[j])}")
    return f"{len(accepted)} of {pairs:,} pairs were accepted:\n\n" + "".join(f"- {line}\n" for line in accepted)


def judged(data: Path) -> str:
    out = "| labelled set | rows | agree with the label | disagree |\n|---|---|---|---|\n"
    for name in _JUDGED:
        found = rows(data, name)
        bad = [
            r for r in found if (check(str(r["response"]), str(r["answer"])).verdict is Verdict.CORRECT) != r["correct"]
        ]
        listed = ", ".join(f"{r['id']} (gold {_code(str(r['answer']))}, labelled {r['correct']})" for r in bad)
        out += f"| {name} | {len(found)} | {share(len(found) - len(bad), len(found))} | {listed or '–'} |\n"
    return out


def hostile(cases: list[Case]) -> str:
    right = in_time = 0
    slowest = 0.0
    for case in cases:
        started = time.perf_counter()
        right += is_correct(case) == case.equal
        milliseconds = 1000 * (time.perf_counter() - started)
        in_time += milliseconds <= case.budget_ms
        slowest = max(slowest, milliseconds)
    return f"{right} of {len(cases)} as labelled, {in_time} within their budget; slowest {slowest:.0f} ms.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with verifier_cases/ and the problem sets")
    data = parser.parse_args().data
    cases = load_cases(data)
    strict = [c for c in cases if c.group == "cases"]
    check("\\boxed{\\sqrt{2}}", "\\sqrt{3}")
    replace_block(_DOCUMENT, "by-kind", by_kind(strict))
    replace_block(_DOCUMENT, "remaining", remaining(strict))
    replace_block(_DOCUMENT, "public", _by_set(cases))
    replace_block(_DOCUMENT, "variants", by_kind([c for c in cases if c.group == "variants"]).splitlines()[2] + "\n")
    replace_block(_DOCUMENT, "hostile", hostile([c for c in cases if c.group == "hostile"]))
    replace_block(_DOCUMENT, "judged", judged(data))
    replace_block(_DOCUMENT, "golds", golds(data))
    replace_block(_DOCUMENT, "other-golds", other_golds(data, 200))


if __name__ == "__main__":
    main()
