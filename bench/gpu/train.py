"""Training steps at size on one GPU, in one command and less than eight minutes:

    python bench/gpu/train.py --out bench/results/train-h200.json

A GRPO step with random weights of Qwen3-30B-A3B's shape with LoRA, of Qwen2.5-7B's with all weights and of Qwen3-32B's
with LoRA; 141 GB are needed for the largest. First gradients of a small shape of each must agree with float32 on the
CPU, or its case is not measured. Then each case runs in a process of its own with its own share of the time. Reported:
tokens/s of the fastest step after the first, the share of the GPU's peak (MFU, recomputed layers not counted), and the
most memory that was allocated beside what `rlreason plan` says.

    python bench/gpu/train.py --shape tiny,tiny-full --device cpu       the same code on a CPU; its times mean nothing
    python bench/gpu/train.py --plan                                    what plan says of each case, without running it
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
#: Seconds of all gates together, of one case, and those that a case may take over for its last step.
GATE_SECONDS, CASE_SECONDS, GRACE = 90.0, 110.0, 15.0
#: What one H200 is asked.
LARGE = ("30b-a3b-lora", "7b-full", "32b-lora")
#: Seconds of the whole command.
WHOLE = 475.0


def asked_of(case: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What a process of its own gives: its JSON, or why there is none."""
    command = [sys.executable, str(HERE / "train_case.py"), json.dumps(case)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"shape": case["shape"], "failed": f"took longer than {seconds:.0f} s"}
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        return {"shape": case["shape"], "failed": lines[-1][:400]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(shapes: list[str], device: str, began: float) -> list[dict[str, Any]]:
    """The gate of each case, then the case."""
    results = []
    for place, shape in enumerate(shapes):
        left = WHOLE - (time.monotonic() - began)
        each = left / (len(shapes) - place)
        gate = asked_of({"shape": shape, "device": device, "seconds": 0, "gate": True}, min(GATE_SECONDS, each / 2))
        if "failed" in gate:
            results.append({"shape": shape, "failed": f"the gate: {gate['failed']}"})
        else:
            each = (WHOLE - (time.monotonic() - began)) / (len(shapes) - place)
            seconds = min(CASE_SECONDS, each - GRACE)
            case = {"shape": shape, "device": device, "seconds": seconds, "gate": False}
            results.append(asked_of(case, seconds + GRACE) | {"gate": gate["distances"]})
        print(row(results[-1]), flush=True)
    return results


HEAD = (
    "| case | parameters | tokens a step | tokens/s | TFLOP/s | MFU | peak memory | plan says | gradients off by |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def row(found: dict[str, Any]) -> str:
    """A line of the table."""
    if "failed" in found:
        return f"| {found['shape']} | failed: {found['failed']} | | | | | | | |"
    share = "–" if found["mfu"] is None else f"{found['mfu']:.1%}"
    peak = found["peak_bytes"] / 1e9
    return (
        f"| {found['shape']} | {found['parameters'] / 1e9:,.3g} B | {found['tokens']:,} | "
        f"{found['tokens_per_second']:,.0f} | {found['teraflops_per_second']:,.3g} | {share} | {peak:,.3g} GB | "
        f"{found['planned_bytes'] / 1e9:,.3g} GB | {found['gate']['bfloat16']:.1e} |"
    )


def say_plan(shapes: list[str]) -> None:
    """Memory by part, as planned for a GPU."""
    sys.path.insert(0, str(HERE))
    import torch
    from shapes import SHAPES
    from train_case import planned

    from rlreason.sizing.shape import empty_model, shape_of

    for name in shapes:
        shape = SHAPES[name]
        config = shape.config()
        memory = planned(shape, config, shape_of(empty_model(config)), torch.device("cuda"))
        parts = ", ".join(f"{part.name} {part.bytes / 1e9:,.3g}" for part in memory.parts)
        print(f"{name}: {memory.total / 1e9:,.1f} GB: {parts}")


def document(results: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    from rlreason.run.manifest import describe_hardware, git_commit, installed_packages

    names = sorted({one["device"] for one in results if "device" in one} - {"cpu"})
    return {
        "hardware": describe_hardware(names).model_dump(), "packages": installed_packages(),
        "commit": git_commit(HERE), "seconds": seconds, "results": results,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    parser.add_argument(
        "--shape", default="30b-a3b-lora,7b-full,32b-lora", help="cases, by comma; also tiny, tiny-full"
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for the tiny ones")
    parser.add_argument("--plan", action="store_true", help="say what plan says of each, and run nothing")
    options = parser.parse_args()
    began, shapes = time.monotonic(), options.shape.split(",")
    known = (*LARGE, "tiny", "tiny-full")
    unknown = sorted(set(shapes) - set(known))
    if unknown:
        parser.error(f"--shape knows {', '.join(known)}, not {', '.join(unknown)}")
    if options.plan:
        say_plan(shapes)
        return
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("no CUDA device here; --shape tiny,tiny-full --device cpu checks the script without one")
    print(HEAD)
    results = run(shapes, options.device, began)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document(results, time.monotonic() - began), indent=1)
        options.out.write_text(text + "\n", encoding="utf-8")
    if any("failed" in one for one in results):
        raise SystemExit("a case failed: see above")


if __name__ == "__main__":
    main()
