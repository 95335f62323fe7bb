"""Run directory -> one self-contained HTML file, and one SVG picture of the held-out curve.

Neither needs torch, nor a run that has ended: the page of a run that is still training, or that failed, shows what was
written so far and says so.
"""

from __future__ import annotations

from pathlib import Path

from rlreason.errors import UsageError
from rlreason.report import compare, curve, findings
from rlreason.report.page import render, write_atomically
from rlreason.report.read import read_run

__all__ = ["build", "build_comparison", "curve_svg"]


def build(run_dir: Path) -> Path:
    """Write `run_dir/report.html`, replacing an older one in a single step, and return its path.

    Raises `UsageError` where `run_dir` is not a run directory, naming what is missing.
    """
    run_dir = Path(run_dir)
    path = run_dir / "report.html"
    write_atomically(path, render(read_run(run_dir)))
    return path


def build_comparison(first: Path, second: Path, out: Path) -> Path:
    """Write one page on two runs, called A and B on it, and return its path.

    Raises `UsageError` where one is not a run directory, or `out` is a folder.
    """
    out = Path(out)
    if out.is_dir():
        raise UsageError(f"{out} is a folder: --out names the HTML file of the comparison")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, compare.render(read_run(Path(first)), read_run(Path(second))))
    return out


def curve_svg(run_dir: Path, path: Path) -> Path:
    """Write the held-out accuracy over the whole chain as an SVG file, for light and dark pages, and return its path.

    Raises `UsageError` where `run_dir` is not a run directory, or measured no held-out accuracy.
    """
    run = read_run(Path(run_dir))
    suites = findings.suites(run)
    found = curve.panels(run, findings.of_the_chain(run, suites))
    if not found:
        raise UsageError(f"{run_dir}: no stage has accuracy/heldout in its metrics.jsonl, and eval/ is empty")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, curve.standalone(found))
    return path
