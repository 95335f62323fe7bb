"""Audits as JSON files: written beside a plug-in or into a folder, read back, found again by what they are of."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlreason.errors import UsageError
from rlreason.rewards import plugins
from rlreason.rewards.audit.identity import same
from rlreason.rewards.audit.result import Audit, Identity
from rlreason.types import Interval

FORMAT = 1
ENDING = ".audit.json"
#: Where audits are kept of rewards that are no file.
FOLDER = "audits"


def default_path(name: str, options: Mapping[str, object], verifier: str) -> Path:
    """Beside a plug-in's file, else ``audits/`` of the current folder. Options are in the name where there are
    some, and the verifier of accuracy."""
    label = plugins.parse(name).label if ":" in name else f"accuracy-{verifier}" if name == "accuracy" else name
    words = [re.sub(r"\.py:", ".", label), *(f"{key}={value}" for key, value in sorted(options.items()))]
    stem = re.sub(r"[^A-Za-z0-9_.=-]+", "-", "-".join(words))[:120].strip("-")
    folder = Path(FOLDER)
    if ":" in name and plugins.parse(name).is_file:
        folder = Path(plugins.parse(name).place).parent
    return folder / f"{stem}{ENDING}"


def write(audit: Audit, path: Path) -> None:
    """Write the JSON file as a whole. Raises UsageError where that can't be done."""
    text = json.dumps({"format": FORMAT, "verdict": "pass" if audit.passed else "fail", **asdict(audit)}, indent=1)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text.encode("utf-8", "backslashreplace").decode() + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"{path}: the audit can't be written: {error.strerror}; say where by --out FILE") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An audit read back, as far as a run needs it."""

    path: Path
    identity: Identity
    passed: bool
    created: str
    reasons: tuple[str, ...]
    calibrated_on: str | None
    false_positive: Interval | None
    false_negative: Interval | None


def read(path: Path) -> Stored:
    """Raises UsageError where the file is no audit of this version."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict) or value["format"] != FORMAT:
            raise UsageError(f"{path}: no audit of this version of rlreason; audit again")
        calibration = value["calibration"]
        total = calibration["kinds"][0] if calibration else {"false_positive": None, "false_negative": None}
        return Stored(
            path=path,
            identity=Identity(**value["identity"]),
            passed=value["verdict"] == "pass",
            created=str(value["created"]),
            reasons=tuple(one["title"] for one in value["findings"] if one["severity"] == "fail"),
            calibrated_on=str(calibration["source"]) if calibration else None,
            false_positive=_interval(total["false_positive"]),
            false_negative=_interval(total["false_negative"]),
        )
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path}: no audit ({type(error).__name__}: {error}); audit again") from None


def _interval(value: Mapping[str, float] | None) -> Interval | None:
    if value is None:
        return None
    return Interval(value=value["value"], low=value["low"], high=value["high"], count=int(value["count"]))


def find(identity: Identity, places: Sequence[Path]) -> tuple[Stored | None, list[str]]:
    """The newest passed audit of exactly that among the files and folders, or None and what was wrong with others."""
    candidates: list[Path] = []
    for place in places:
        candidates += sorted(place.glob(f"*{ENDING}")) if place.is_dir() else [place] if place.is_file() else []
    passed: list[Stored] = []
    why: list[str] = []
    for path in dict.fromkeys(one.resolve() for one in candidates):
        try:
            stored = read(path)
        except UsageError as error:
            why.append(str(error))
            continue
        different = same(identity, stored.identity)
        if different and stored.identity.reward == identity.reward:
            why.append(f"{path.name}: {'; '.join(different)}")
        elif not different and not stored.passed:
            why.append(f"{path.name}: failed ({', '.join(stored.reasons[:3])})")
        elif not different:
            passed.append(stored)
    return max(passed, key=lambda one: one.created, default=None), why
