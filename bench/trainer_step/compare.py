"""Seconds per trainer step: ours against TRL's GRPOTrainer on the same replayed rollouts, by turns.

    python -m venv peers && peers/bin/pip install torch==2.13.0 trl==1.16.0 && peers/bin/pip install -e . --no-deps
    peers/bin/python bench/trainer_step/compare.py

First both must give the same loss (1e-6) and gradients (1e-5) from the same weights; then they take turns. Writes
bench/trainer_step/results/compare.json and the marked block of docs/performance.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rollouts import GROUP, MODELS, SHAPES, make_model, make_rollouts

from rlreason.policy.tokenizer import character_tokenizer
from rlreason.run.manifest import describe_hardware

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
from documents import replace_block  # noqa: E402

RESULTS = Path(__file__).with_name("results") / "compare.json"
MOST_LOSS, MOST_GRADIENT = 1e-6, 1e-5


def work(name: str, size: str, kind: str, threads: int, pipe: Connection) -> None:
    """A trainer in a process of its own, set up as its users have it; answers one line after the other."""
    from trainers import Ours, Trl

    from rlreason.policy.attention import ATTENTION
    from rlreason.policy.process import prepare_process

    if name == "rlreason":
        prepare_process()  # as ``rlreason run`` does
    else:
        torch.set_num_threads(threads)
    attention = ATTENTION if name == "rlreason" else "sdpa"
    side = {"rlreason": Ours, "trl": Trl}[name](
        make_model(size, attention), character_tokenizer("0123456789"), make_rollouts(size, kind), threads
    )
    while (order := pipe.recv()) != "end":
        if order == "step":
            started = time.perf_counter()
            side.step()
            pipe.send(time.perf_counter() - started)
        else:
            loss, gradients = side.gradients()
            torch.save(gradients, order)
            pipe.send(loss)


def ask(pipe: Connection, order: str) -> Any:
    """An order's answer."""
    pipe.send(order)
    return pipe.recv()


def gate(pipes: dict[str, Connection]) -> dict[str, float]:
    """Largest differences of loss and gradients. Exits where they do not agree."""
    with tempfile.TemporaryDirectory() as folder:
        losses = {name: ask(pipe, f"{folder}/{name}") for name, pipe in pipes.items()}
        ours, theirs = (torch.load(f"{folder}/{name}") for name in pipes)
    loss = abs(losses["rlreason"] - losses["trl"])
    gradient = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    largest = max(float(value.abs().max()) for value in theirs.values())
    if not (ours.keys() == theirs.keys() and loss <= MOST_LOSS and gradient <= MOST_GRADIENT < largest):
        raise SystemExit(f"not the same step: loss differs by {loss:.1e}, gradients by {gradient:.1e} of {largest:.1e}")
    return {"loss_difference": loss, "gradient_difference": gradient, "largest_gradient": largest}


def measure(size: str, kind: str, rounds: int, threads: int) -> dict[str, Any]:
    """Both trainers, by turns; each round's ratio is of neighbours in time."""
    context, pipes, processes = get_context("spawn"), {}, []
    for name in ("rlreason", "trl"):
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(name, size, kind, threads, theirs), daemon=True))
        processes[-1].start()
    found: dict[str, Any] = {"model": size, "rollouts": kind, **gate(pipes)}
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for number in range(rounds + 2):  # the first two warm up
        for name, pipe in pipes.items():
            spent = ask(pipe, "step")
            if number > 1:
                seconds[name].append(spent)
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send("end")
        process.join()
    ratios = [theirs / ours for ours, theirs in zip(seconds["rlreason"], seconds["trl"], strict=True)]
    rollouts = make_rollouts(size, kind)
    rows = sum(len(row) for row in rollouts.completions)
    computed = sum(map(len, rollouts.prompts)) + rows - len(rollouts.completions)
    return {
        **found,
        "products": products(size, computed, rows, threads),
        "rows": len(rollouts.completions),
        "prompt_tokens": GROUP * sum(len(prompt) for prompt in rollouts.prompts),
        "completion_tokens": rows,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "rounds": rounds,
    }


def products(size: str, tokens: int, rows: int, threads: int) -> float:
    """Seconds of the matrix products alone that a step can't do without: forward, and both gradients, of every linear
    layer over ``tokens`` and of the head over ``rows``; the best of three."""
    torch.set_num_threads(threads)
    shape = MODELS[size]
    wide, inner = shape["hidden_size"], shape["intermediate_size"]
    heads, pairs = (shape[name] * shape["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    layer = [(wide, heads), (wide, pairs), (wide, pairs), (heads, wide), (wide, inner), (wide, inner), (inner, wide)]
    work = [(tokens, *one) for one in layer] * shape["num_hidden_layers"] + [(rows, wide, shape["vocab_size"])]
    best = float("inf")
    for _ in range(3):
        total = 0.0
        for count, entering, leaving in work:
            x, w, y = torch.ones(count, entering), torch.ones(leaving, entering), torch.ones(count, leaving)
            into, back = torch.empty_like(w), torch.empty_like(x)
            started = time.perf_counter()
            torch.mm(x, w.t(), out=y)
            torch.mm(y, w, out=back)
            torch.mm(y.t(), x, out=into)
            total += time.perf_counter() - started
        best = min(best, total)
    return best


def table(cases: list[dict[str, Any]]) -> str:
    """The cases as Markdown."""
    lines = [
        "| model | rollouts | matrix products alone, s | rlreason, s | TRL, s | TRL / rlreason | gradients differ by |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        low, high = case["ratio_range"]
        lines.append(
            f"| {case['model']} (V = {MODELS[case['model']]['vocab_size']:,}) "
            f"| {case['rollouts']}: {case['rows']} rows, "
            f"{case['prompt_tokens']} + {case['completion_tokens']} tokens "
            f"| {case['products']:.3f} | {case['seconds']['rlreason']:.3f} | {case['seconds']['trl']:.3f} "
            f"| **{case['ratio']:.2f}** ({low:.2f}–{high:.2f}) | {case['gradient_difference']:.0e} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="of the tiny model; the wide one gets a third")
    parser.add_argument("--only", choices=list(MODELS), help="one model; then nothing is written")
    options = parser.parse_args()
    threads = os.cpu_count() or 1
    cases = []
    for size, kind in SHAPES:
        if options.only in (None, size):
            rounds = options.rounds if size == "tiny" else max(1, options.rounds // 3)
            cases.append(measure(size, kind, rounds, threads))
            print(table(cases[-1:]).splitlines()[-1], flush=True)
    if options.only is None:
        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl")}
        document = {
            "hardware": describe_hardware([]).model_dump(),
            "threads": threads,
            "versions": versions,
            "cases": cases,
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        replace_block(ROOT / "docs" / "performance.md", "trainer-step", table(cases))


if __name__ == "__main__":
    main()
