"""The kernels of the objective on one GPU, beside plain torch, torch.compile and Liger, in one run.

    python bench/gpu/objective.py --out bench/results/objective-h200.json

Needs a CUDA device and Triton; Liger is measured where it is installed (pip install liger-kernel==0.8.5 --no-deps).
First every way must agree with the torch path in float64 on the CPU, ours closely, or nothing is measured. Then the
ways take turns: median of ``--rounds`` runs by CUDA events, with the L2 cache overwritten before each. Also peak
memory over the inputs, launches and device time from the profiler, and whether anything waits for the device.
``--smoke`` runs the same code on the CPU at small sizes, to see that it works; its times mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import Way, interleaved
from torch import Tensor
from ways import (
    HeadInputs,
    ScoreInputs,
    TokenInputs,
    advantage_exact,
    advantage_ways,
    has_kernels,
    head_exact,
    head_ways,
    token_exact,
    token_ways,
)

from rlreason.run.manifest import describe_hardware, git_commit

ROOT = Path(__file__).resolve().parents[2]

#: What another way may differ by and still compute the same: bfloat16 logits, gradients added up in bfloat16.
_OTHERS = 5e-2
#: FLOP/s of a dense bfloat16 product on Hopper that the floors assume.
_FLOPS = 790e12


@dataclass(frozen=True)
class Kernel:
    """One of the three: how to build inputs, what is exact, which ways there are."""

    name: str
    make: Callable[..., Any]
    exact: Callable[[Any], tuple[Tensor, ...]]
    ways: Callable[[Any, bool], list[Way]]
    #: Largest distance of ours from exact: of the first result, and of the others.
    limits: tuple[float, float]
    #: Sizes of the gate, of the measurement, and of the measurement with --smoke.
    gate_size: tuple[int, ...]
    sizes: Sequence[tuple[int, ...]]
    smoke_sizes: Sequence[tuple[int, ...]]
    #: Whether every measured size is cheap enough to be held against float64, too.
    checked: bool = False


KERNELS = (
    Kernel(
        "K1",
        ScoreInputs.make,
        advantage_exact,
        advantage_ways,
        (1e-6, 1e-6),
        (1024, 8, 0),
        # Rollouts, the size of their groups, and what is added to every score: steps of a run, more rollouts than one
        # launch takes, groups longer than RL-Kernel's 1,024, and offsets that a variance taken in one pass in float32
        # cancels under (at 10,000 wholly).
        [(1024, 8, 0), (8192, 8, 0), (32_768, 16, 0), (16_384, 4096, 0), (8192, 8, 7428), (8192, 8, 10_000)],
        [(64, 8, 0), (64, 8, 10_000), (4096, 2048, 0)],
        checked=True,
    ),
    Kernel(
        "K2",
        TokenInputs.make,
        token_exact,
        token_ways,
        (1e-6, 1e-6),
        (16, 500),
        [(32, 256), (32, 1024), (256, 4096)],  # the first is that of RL-Kernel's grpo_loss
        [(4, 64)],
    ),
    Kernel(
        "K3",
        HeadInputs.make,
        head_exact,
        head_ways,
        (1e-5, 4e-3),  # gradients are bfloat16
        (64, 64, 5003),
        # The last two are RL-Kernel's published shapes: of linear_logp, and (4 prompts of 8 samples of 256 tokens) of
        # grpo_loss, which begins with logits; here the head's products are in it.
        [
            (32_768, 2048, 151_936),
            (32_768, 1024, 151_936),
            (8192, 4096, 151_936),
            (4096, 2048, 131_072),
            (8192, 2048, 131_072),
        ],
        [(32, 16, 500)],
    ),
)


def distance(actual: Tensor, exact: Tensor) -> float:
    """Relative to the length; of a number, relative to it or 1."""
    away = actual.detach().cpu().double() - exact
    scale = exact.abs().clamp(min=1.0) if exact.ndim == 0 else exact.norm()
    return float(away.norm() / scale)


def gate(kernel: Kernel, device: torch.device, compiled: bool) -> list[dict[str, object]]:
    """Distances of each way from float64 on the CPU. Ends the run where one is too far."""
    inputs = kernel.make(*kernel.gate_size, device)
    exact = kernel.exact(inputs)
    rows: list[dict[str, object]] = []
    for way in kernel.ways(inputs, compiled):
        found = [distance(one, other) for one, other in zip(way.call(), exact, strict=True)]
        first, rest = kernel.limits if way.ours else (_OTHERS, _OTHERS)
        interpreted = device.type == "cpu" and way.name.startswith("kernel")
        if interpreted:
            rest = max(rest, 6e-3 if kernel.name == "K3" else 0.0)  # the interpreter cuts bfloat16 off
        if not (found[0] <= first and max(found[1:], default=0.0) <= rest):
            raise SystemExit(f"{kernel.name}, {way.name}: {found} from exact; nothing was measured")
        rows.append({"way": way.name, "size": kernel.gate_size, "distances": found})
        print(f"{kernel.name} gate  {way.name:30} " + "  ".join(f"{value:.1e}" for value in found))
    return rows


def floors(kernel: Kernel, size: tuple[int, ...]) -> dict[str, float]:
    """Milliseconds below which no way of three or four products can be."""
    if kernel.name != "K3":
        return {}
    product = 2.0 * size[0] * size[1] * size[2] / _FLOPS * 1e3
    return {"floor_3_products_ms": 3 * product, "floor_4_products_ms": 4 * product}


def measured(
    kernel: Kernel, size: tuple[int, ...], device: torch.device, rounds: int, compiled: bool
) -> dict[str, Any]:
    """One table. Where the kernel is ``checked``, each way's distances from float64 at this size are in it: what is
    fast and wrong there is seen to be, and ours may not be wrong."""
    inputs = kernel.make(*size, device)
    ways = kernel.ways(inputs, compiled)
    rows = interleaved(ways, rounds, device)
    for way, row in zip(ways, rows, strict=True) if kernel.checked else ():
        found = [distance(one, other) for one, other in zip(way.call(), kernel.exact(inputs), strict=True)]
        if way.ours and not max(found) <= kernel.limits[0]:
            raise SystemExit(f"{kernel.name}, {way.name}, {size}: {found} from exact")
        row["distances"] = found
    for row in rows:
        time = f"{row['ms_median']:10.4f} ms" if "ms_median" in row else f"failed: {row['failed']}"
        print(f"{kernel.name} {size!s:24} {row['way']:30} {time}")
    return {"kernel": kernel.name, "size": size, **floors(kernel, size), "ways": rows}


def machine(device: torch.device) -> dict[str, object]:
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda}
    for package in ("triton", "liger-kernel"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    gpus = [torch.cuda.get_device_name(device)] if device.type == "cuda" else []
    return {
        "hardware": describe_hardware(gpus).model_dump(),
        "versions": versions,
        "commit": git_commit(ROOT),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    parser.add_argument("--rounds", type=int, default=50, help="timed runs of each way; at least 30 (not with --smoke)")
    parser.add_argument("--only", default="K1,K2,K3", help="kernels to measure, e.g. K1,K3")
    parser.add_argument("--smoke", action="store_true", help="on the CPU, at small sizes; measures nothing")
    options = parser.parse_args()
    unknown = set(options.only.split(",")) - {kernel.name for kernel in KERNELS}
    if unknown:
        parser.error(f"--only knows K1, K2 and K3, not {', '.join(sorted(unknown))}")
    if not options.smoke and options.rounds < 30:
        parser.error(f"--rounds must be at least 30, not {options.rounds}")
    return options


def main() -> None:
    options = arguments()
    if not options.smoke and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: this measures the kernels on a GPU (--smoke checks the script without)")
    device = torch.device("cpu" if options.smoke else "cuda")
    if not options.smoke and not has_kernels(device):
        raise SystemExit("Triton is not installed: there is no kernel to measure")
    compiled = not options.smoke
    wanted = [kernel for kernel in KERNELS if kernel.name in options.only.split(",")]
    gates = {kernel.name: gate(kernel, device, compiled) for kernel in wanted}
    tables = [
        measured(kernel, size, device, 2 if options.smoke else options.rounds, compiled)
        for kernel in wanted
        for size in (kernel.smoke_sizes if options.smoke else kernel.sizes)
    ]
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"smoke": options.smoke, **machine(device), "gates": gates, "tables": tables}
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
