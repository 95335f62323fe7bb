"""A divergence from a teacher in the head, ours beside TRL's and Liger's, on the same states, heads and rows.

    python -m venv peers && peers/bin/pip install torch==2.13.0 trl==1.16.0 && peers/bin/pip install -e . --no-deps
    peers/bin/pip install --no-deps liger-kernel==0.8.5 triton     # triton: it is imported, and runs nothing on a CPU
    peers/bin/python bench/distill/loss.py

First all must agree: loss and both gradients, to 1e-5 of the largest, for the forward and reverse KL and J_β; then they
take turns, each in a process of its own. Time is that of the processor (other programs don't count), on one thread;
memory the largest resident set over that with the inputs in place. Liger's Triton kernel of the JSD needs a GPU; what
runs here is its chunked loss. Writes bench/distill/results/loss.json and the marked block of docs/distill.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "bench"))
from documents import replace_block  # noqa: E402

from rlreason.objective.distillation.head import (  # noqa: E402
    DistillationOptions,
    RowWeights,
    StudentRows,
    distillation_loss,
)
from rlreason.objective.distillation.spec import DistillationSpec  # noqa: E402
from rlreason.objective.distillation.teacher import OutputHead, TeacherRows  # noqa: E402
from rlreason.run.manifest import describe_hardware  # noqa: E402

RESULTS = Path(__file__).with_name("results") / "loss.json"
#: β as all three have it: 0 the forward KL, 1 the reverse, between them GKD's J_β.
BETAS = {"forward": 0.0, "reverse": 1.0, "jsd": 0.3}
MOST = 1e-5
Found = tuple[Tensor, Tensor, Tensor]


class Inputs:
    """Rows of a student and a teacher of half its width."""

    def __init__(self, rows: int, hidden: int, words: int) -> None:
        random = torch.Generator().manual_seed(0)
        self.states = torch.randn(rows, hidden, generator=random).requires_grad_()
        self.weight = (0.1 * torch.randn(words, hidden, generator=random)).requires_grad_()
        self.theirs = torch.randn(rows, hidden // 2, generator=random)
        self.head = 0.15 * torch.randn(words, hidden // 2, generator=random)
        self.targets = torch.randint(words, (rows,), generator=random)

    def slopes(self, loss: Tensor) -> Found:
        """The loss and its gradients."""
        return (loss.detach(), *torch.autograd.grad(loss, (self.states, self.weight)))


def ours(given: Inputs, beta: float) -> Found:
    """``rlreason.objective.distillation``."""
    names = {0.0: DistillationSpec(divergence="forward"), 1.0: DistillationSpec(divergence="reverse")}
    spec = names[beta] if beta in names else DistillationSpec(divergence="jsd", beta=beta)
    rows = len(given.targets)
    student = StudentRows(
        hidden_RH=given.states, weight_VH=given.weight,
        targets_R=given.targets, sampler_logprobs_R=torch.zeros(rows),
    )  # fmt: skip
    teacher = TeacherRows(head=OutputHead(weight_VH=given.head), hidden_RH=given.theirs)
    weights = RowWeights(divergence_R=torch.full((rows,), 1.0 / rows))
    return given.slopes(distillation_loss(student, teacher, weights, DistillationOptions(spec=spec)).loss)


def trl(given: Inputs, beta: float) -> Found:
    """``trl.DistillationTrainer``'s loss."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    loss, _, _ = _chunked_divergence_loss(
        given.states[None], given.theirs[None], given.weight, given.head, torch.ones(1, len(given.targets)), beta
    )
    return given.slopes(loss)


def liger(given: Inputs, beta: float) -> Found:
    """Liger's chunked JSD without its cross-entropy; not compiled, as compiling on a CPU takes longer than it saves."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False)
    return given.slopes(loss(given.states, given.weight, given.theirs, given.head, given.targets))


def whole(given: Inputs, beta: float) -> Found:
    """Whole logits and autograd, as one writes it first."""
    logp, logq = (given.states @ given.weight.t()).log_softmax(-1), (given.theirs @ given.head.t()).log_softmax(-1)
    if beta == 0.0:
        rows = (logq.exp() * (logq - logp)).sum(-1)
    elif beta == 1.0:
        rows = (logp.exp() * (logp - logq)).sum(-1)
    else:
        middle = (beta * logq.exp() + (1 - beta) * logp.exp()).log()
        rows = (beta * logq.exp() * (logq - middle) + (1 - beta) * logp.exp() * (logp - middle)).sum(-1)
    return given.slopes(rows.mean())


WAYS: dict[str, Callable[[Inputs, float], Found]] = {
    "rlreason": ours,
    "TRL": trl,
    "Liger": liger,
    "whole logits": whole,
}


def work(name: str, shape: tuple[int, int, int], pipe: Connection) -> None:
    """One way in a process of its own: its results into a file, then seconds of the processor and peak memory."""
    torch.set_num_threads(1)
    given = Inputs(*shape)
    while (order := pipe.recv()) != "end":
        beta, file = order
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before, started = _status_mib("VmRSS"), time.process_time()
        found = WAYS[name](given, beta)
        seconds = time.process_time() - started
        if file:
            torch.save(found, file)
        del found
        pipe.send((seconds, _status_mib("VmHWM") - before))


def _status_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def gate(folder: Path, what: str) -> dict[str, float]:
    """The largest difference of each way from whole logits, over the largest number there. Exits where it is more than
    rounding, and where one divergence could not be told from another."""
    expected = torch.load(folder / "whole logits")
    found = {}
    for name in WAYS:
        pairs = zip(torch.load(folder / name), expected, strict=True)
        found[name] = max(float((mine - its).abs().max() / its.abs().max()) for mine, its in pairs)
        if not found[name] <= MOST:
            raise SystemExit(f"{name}, {what}: differs from whole logits by {found[name]:.1e}")
    return found


def measure(shape: tuple[int, int, int], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Divergence -> way -> numbers; all ways by turns, after they agree."""
    context, pipes, processes = get_context("spawn"), {}, []
    for name in WAYS:
        pipes[name], end = context.Pipe()
        processes.append(context.Process(target=work, args=(name, shape, end), daemon=True))
        processes[-1].start()
    document: dict[str, dict[str, dict[str, float]]] = {}
    for what, beta in BETAS.items():
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        peaks: dict[str, list[float]] = {name: [] for name in WAYS}
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(rounds + 1):  # the first warms up and is compared
                for name, pipe in pipes.items():
                    pipe.send((beta, "" if turn else f"{folder}/{name}"))
                    spent, peak = pipe.recv()
                    if turn:
                        seconds[name].append(spent)
                        peaks[name].append(peak)
                if not turn:
                    apart = gate(Path(folder), what)
        document[what] = {
            name: {
                "seconds": statistics.median(values),
                "fastest": min(values),
                "peak_mib": statistics.median(peaks[name]),
                "apart": apart[name],
            }
            for name, values in seconds.items()
        }
        print(what, json.dumps(document[what]), flush=True)
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send("end")
        process.join()
    return document


def table(document: dict[str, dict[str, dict[str, float]]]) -> str:
    """As Markdown."""
    lines = ["| divergence | way | CPU s | peak MiB | differs from whole logits by |", "|---|---|---|---|---|"]
    for what, ways in document.items():
        for name, way in ways.items():
            apart = "" if name == "whole logits" else f"{way['apart']:.0e}"
            lines.append(f"| {what} | {name} | {way['seconds']:.1f} | {way['peak_mib']:,.0f} | {apart} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 64, 151_936), metavar=("ROWS", "HIDDEN", "WORDS"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    shape = tuple(options.shape)
    found = measure(shape, options.rounds)
    print(table(found))
    if shape == parser.get_default("shape"):
        versions = {name: importlib.metadata.version(name) for name in ("torch", "trl", "liger-kernel")}
        document = {
            "hardware": describe_hardware([]).model_dump(),
            "shape": shape,
            "rounds": options.rounds,
            "versions": versions,
            "divergences": found,
        }
        RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        replace_block(ROOT / "docs" / "distill.md", "distillation loss", table(found))


if __name__ == "__main__":
    main()
