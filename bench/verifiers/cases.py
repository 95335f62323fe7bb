"""The labelled cases and intervals."""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "bench"))  # documents.py, which all benchmarks share


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Example: ``Case(place="core:12", gold="1/2", pred="0.5", equal=True, kind="fraction", mode="answer",
    group="cases")``."""

    place: str
    #: several: one of them suffices
    gold: str | tuple[str, ...]
    pred: str
    equal: bool
    kind: str
    mode: str
    #: cases, variants, hostile; or of the public reports of 2026-11: public, attacks
    group: str
    budget_ms: float = math.inf


def load_cases(data: Path) -> list[Case]:
    """All strict cases: rows marked debatable are left out."""
    out = []
    for path in sorted((data / "verifier_cases").glob("*.jsonl")):
        group = "hostile" if "hostile" in path.stem else "variants" if "variants" in path.stem else "cases"
        of_set = {"public": "public", "variants": "attacks"}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            row = json.loads(line)
            if row.get("debatable"):
                continue
            out.append(
                Case(
                    place=f"{path.stem}:{number}",
                    gold=tuple(row["gold"]) if isinstance(row["gold"], list) else row["gold"],
                    pred=row["pred"],
                    equal=row["equal"],
                    kind=row["kind"],
                    mode=row["mode"],
                    group=of_set[row["set"]] if "set" in row else group,
                    budget_ms=float(row["budget_ms"]) if "budget_ms" in row else math.inf,
                )
            )
    return out


def response_of(case: Case) -> str:
    return f"\\boxed{{{case.pred}}}" if case.mode == "answer" else case.pred


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    if not count:
        return 0.0, 1.0
    z = 1.959964
    p = right / count
    middle = p + z * z / (2 * count)
    spread = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
