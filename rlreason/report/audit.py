"""An audit's JSON file -> one self-contained HTML page beside it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from markupsafe import Markup

from rlreason.errors import UsageError
from rlreason.report import page
from rlreason.report.read import Json, as_dict, as_list

#: Attacks that were not paid are shown up to this many a family.
_SHOWN = 12
_MARKS = {"ok": "✓", "fail": "✗", "warning": "!", "skipped": "–"}
_SECTIONS = (
    ("controls", "Plain answers"),
    ("contract", "Contract"),
    ("redteam", "Red team"),
    ("calibration", "Calibration"),
)


def build_audit(path: Path) -> Path:
    """Write the page of the audit at ``path`` beside it, replacing an older one, and return its path.

    Raises `UsageError` where the file is no audit.
    """
    path = Path(path)
    try:
        audit = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: no audit can be read there: {error}") from None
    if not isinstance(audit, dict) or "checks" not in audit:
        raise UsageError(f"{path}: not an audit; `rlreason audit` writes them")
    out = path.with_suffix(".html")
    page.write_atomically(out, render(audit))
    return out


def render(audit: Json) -> str:
    """The whole page."""
    identity = as_dict(audit["identity"])
    findings = [as_dict(one) for one in as_list(audit["findings"])]
    counts = Counter(str(one["severity"]) for one in findings)
    return (
        page.environment()
        .from_string(page.asset("audit.html"))
        .render(
            audit=audit,
            identity=identity,
            passed=audit["verdict"] == "pass",
            headline=_headline(audit, counts),
            findings=findings,
            sections=_sections(audit),
            marks=_MARKS,
            families=_families(audit),
            calibration=audit["calibration"],
            speed=audit["speed"],
            style=Markup(page.asset("style.css")),
        )
    )


def _headline(audit: Json, counts: Counter[str]) -> str:
    """The verdict in one sentence."""
    attacks = [as_dict(one) for one in as_list(audit["attacks"]) if as_dict(one)["expected"] != "any"]
    held = sum(bool(one["ok"]) for one in attacks)
    tried = f"; {held:,} of {len(attacks):,} attacks were not paid" if attacks else ""
    if audit["verdict"] == "pass":
        noted = f" with {counts['warning']} warning{'s' if counts['warning'] != 1 else ''}" if counts["warning"] else ""
        return f"It kept its contract{noted}{tried}."
    return f"{counts['fail']} finding{'s' if counts['fail'] != 1 else ''} must be mended before a run trusts it{tried}."


def _sections(audit: Json) -> list[tuple[str, list[Json]]]:
    checks = [as_dict(one) for one in as_list(audit["checks"])]
    found = [(title, [one for one in checks if str(one["name"]).partition(".")[0] == key]) for key, title in _SECTIONS]
    return [(title, rows) for title, rows in found if rows]


def _families(audit: Json) -> list[Json]:
    """Attacks by family, the paid ones first; of the others a sample."""
    rows = [as_dict(one) for one in as_list(audit["attacks"])]
    found: list[Json] = []
    for family in dict.fromkeys(str(one["family"]) for one in rows):
        here = sorted((one for one in rows if one["family"] == family), key=lambda one: bool(one["ok"]))
        paid = sum(not one["ok"] for one in here)
        shown = here[: max(_SHOWN, paid)]
        judged = any(one["expected"] != "any" for one in here)
        found.append(
            {"name": family.replace("_", " "), "count": len(here), "paid": paid, "rows": shown, "judged": judged}
        )
    return sorted(found, key=lambda one: (not one["paid"], not one["judged"]))
