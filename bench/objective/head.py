"""Language-model head and loss at 2048 x 1024 x 151,936: time beside the bare matrix products, peak memory beside
whole logits. No peer is needed; with TRL installed, its chunked head takes its turn too.

    python bench/objective/head.py

Each way runs in a process of its own, by turns; the gradients must agree first. Peak memory is the largest resident
set (Linux) over that with the inputs in place. Writes bench/objective/results/head.json and the marked block of
docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "bench"))
from documents import replace_block  # noqa: E402

from rlreason.objective.batch import Batch  # noqa: E402
from rlreason.objective.linear import HeadOptions, linear_policy_loss  # noqa: E402
from rlreason.objective.loss import policy_loss  # noqa: E402
from rlreason.objective.presets import PRESETS  # noqa: E402
from rlreason.run.manifest import describe_hardware  # noqa: E402

RESULTS = Path(__file__).with_name("results") / "head.json"
Way = Callable[[Tensor, Tensor, Batch], tuple[Tensor, ...]]


def inputs(rows: int, hidden: int, vocabulary: int) -> tuple[Tensor, Tensor, Batch]:
    """Eight sequences, all tokens with loss, on-policy."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn((8, rows // 8, hidden), generator=generator).requires_grad_()
    weight = (0.02 * torch.randn((vocabulary, hidden), generator=generator)).requires_grad_()
    targets = torch.randint(vocabulary, (8, rows // 8), generator=generator)
    batch = Batch(
        token_ids_BT=targets,
        targets_BT=targets,
        loss_mask_BT=torch.ones(targets.shape),
        sampler_logprobs_BT=torch.full(targets.shape, -12.0),
        advantages_BT=torch.randn((8, 1), generator=generator).repeat(1, rows // 8),
        weights_BT=torch.full(targets.shape, 1.0 / rows),
    )
    return states, weight, batch


def forward_gradient(states: Tensor, weight: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    """Ours, three products: the gradient is taken with the loss."""
    output = linear_policy_loss(states, weight, batch, PRESETS["dapo"])
    return (output.loss.detach(), *torch.autograd.grad(output.loss, (states, weight)))


def recompute(states: Tensor, weight: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    """Ours, four products: what a sequence's ratio needs."""
    output = linear_policy_loss(states, weight, batch, PRESETS["dapo"], options=HeadOptions(gradient="recompute"))
    return (output.loss.detach(), *torch.autograd.grad(output.loss, (states, weight)))


def whole_logits(states: Tensor, weight: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    """Logits, log-softmax and entropy as one writes them first."""
    logits = states @ weight.t()
    logs = torch.log_softmax(logits, dim=-1)
    with torch.no_grad():
        entropy = -(logs.exp() * logs).sum(dim=-1)
    now_BT = logs.gather(-1, batch.targets_BT.unsqueeze(-1)).squeeze(-1)
    loss = policy_loss(now_BT, None, batch, PRESETS["dapo"]).loss + 0.0 * entropy.sum()
    return (loss.detach(), *torch.autograd.grad(loss, (states, weight)))


def products(states: Tensor, weight: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    """The three matrix products and nothing else."""
    with torch.no_grad():
        flat = states.reshape(-1, states.shape[-1])
        logits = flat @ weight.t()
        return (logits @ weight, logits.t() @ flat)


def trl(states: Tensor, weight: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    """TRL's chunked head with its vocabulary chunk, and our loss of its log-probabilities."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    now, *_ = ChunkedLogProbFunction.apply(
        states.reshape(-1, states.shape[-1]), weight, None, batch.targets_BT.reshape(-1), 1.0,
        _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs", "entropy"),
    )  # fmt: skip
    loss = policy_loss(now.view(batch.targets_BT.shape), None, batch, PRESETS["dapo"]).loss
    return (loss.detach(), *torch.autograd.grad(loss, (states, weight)))


WAYS: dict[str, Way] = {
    "three matrix products": products,
    "rlreason": forward_gradient,
    "rlreason, recomputed": recompute,
    "whole logits": whole_logits,
    **({"TRL": trl} if find_spec("trl") else {}),
}


def work(name: str, shape: tuple[int, int, int], threads: int, pipe: Connection) -> None:
    """One way in a process of its own: its results into a file, then seconds and peak memory of each run."""
    torch.set_num_threads(threads)
    states, weight, batch = inputs(*shape)
    Path("/proc/self/clear_refs").write_text(
        "5", encoding="ascii"
    )  # the peak begins anew, without what made the inputs
    before = _status_mib("VmRSS")
    while (order := pipe.recv()) != "end":
        started = time.perf_counter()
        found = WAYS[name](states, weight, batch)
        seconds = time.perf_counter() - started
        if order != "run":
            torch.save(found, order)
        del found
        pipe.send((seconds, _status_mib("VmHWM") - before))


def _status_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def measure(shape: tuple[int, int, int], rounds: int, threads: int) -> dict[str, dict[str, float]]:
    """All ways by turns, after their results agree with those of whole logits."""
    context, pipes, processes = get_context("spawn"), {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name in WAYS:
            pipes[name], theirs = context.Pipe()
            processes.append(context.Process(target=work, args=(name, shape, threads, theirs), daemon=True))
            processes[-1].start()
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        peaks: dict[str, float] = {}
        for number in range(rounds + 1):  # the first warms up and is compared
            for name, pipe in pipes.items():
                pipe.send("run" if number else f"{folder}/{name}")
                spent, peaks[name] = pipe.recv()
                if number:
                    seconds[name].append(spent)
            if not number:
                gate(Path(folder))
        for pipe, process in zip(pipes.values(), processes, strict=True):
            pipe.send("end")
            process.join()
    bare, naive = seconds["three matrix products"], peaks["whole logits"]
    return {
        name: {
            "seconds": statistics.median(values),
            "over_products": statistics.median(mine / floor for mine, floor in zip(values, bare, strict=True)),
            "peak_mib": peaks[name],
            "of_whole": peaks[name] / naive,
        }
        for name, values in seconds.items()
    }


def gate(folder: Path) -> None:
    """Loss and both gradients of all ways are those of whole logits, to 1e-5 of the largest; exits otherwise."""
    expected = torch.load(folder / "whole logits")
    for name in WAYS:
        if name in ("whole logits", "three matrix products"):
            continue
        for mine, theirs in zip(torch.load(folder / name), expected, strict=True):
            apart = float((mine - theirs).abs().max() / theirs.abs().max())
            if not apart <= 1e-5:
                raise SystemExit(f"{name}: differs from whole logits by {apart:.1e}")


def table(ways: dict[str, dict[str, float]]) -> str:
    """The ways as Markdown."""
    lines = ["| way | s | times the three products | peak memory, MiB | of whole logits' |", "|---|---|---|---|---|"]
    for name, way in ways.items():
        lines.append(
            f"| {name} | {way['seconds']:.1f} | {way['over_products']:.2f} | {way['peak_mib']:,.0f} "
            f"| {way['of_whole']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(2048, 1024, 151_936), metavar=("ROWS", "HIDDEN", "VOC"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    ways = measure(tuple(options.shape), options.rounds, options.threads)
    print(table(ways))
    if tuple(options.shape) == parser.get_default("shape"):
        document = {
            "hardware": describe_hardware([]).model_dump(),
            "threads": options.threads,
            "torch": torch.__version__,
            "ways": ways,
        }
        RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        replace_block(ROOT / "docs" / "performance.md", "head", table(ways))


if __name__ == "__main__":
    main()
