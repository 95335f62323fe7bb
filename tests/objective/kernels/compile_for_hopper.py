"""Compiles every kernel for sm_90 (H100, H200) as its driver calls it, without a GPU: through PTX to a binary by the
ptxas of Triton's wheel. Prints one JSON line a build. Run by ``tests/objective/test_kernels.py``.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from rlreason.objective.batch import Batch
from rlreason.objective.kernels import advantage, linear, loss
from rlreason.objective.linear import HeadOptions
from rlreason.objective.loss import LossInputs
from rlreason.objective.presets import PRESETS
from rlreason.objective.scores import StepScores
from rlreason.objective.spec import ObjectiveSpec


class Hopper:
    """What the compiler asks the active driver."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


_run = JITFunction.run
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def resources(binary: bytes) -> dict[str, int]:
    """Registers and bytes of stack of a thread: a stack holds what did not fit the registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(_CUOBJDUMP), "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found is not None, said
    return {"registers": int(found[1]), "stack": int(found[2])}


def compile_only(self: JITFunction[Any], *arguments: Any, grid: Any, warmup: bool, **more: Any) -> Any:
    """In place of a launch."""
    built = _run(self, *arguments, grid=grid, warmup=True, **more)
    ptx = built.asm["ptx"]
    print(
        json.dumps(
            {
                "kernel": self.__name__,
                "target": next(line for line in ptx.splitlines() if line.startswith(".target")),
                "ptx_lines": ptx.count("\n"),
                "binary_bytes": len(built.asm["cubin"]),
                "atomics": "atom." in ptx or "red.global" in ptx,
                "float64": ".f64" in ptx,
                "warps": built.metadata.num_warps,
                **resources(built.asm["cubin"]),
            }
        ),
        flush=True,
    )
    return built


def group_kernels(name: str) -> None:
    """K1, in one launch and in two."""
    for rollouts in (1000, advantage.ONE_LAUNCH + 1000):
        scores = StepScores(
            spec=PRESETS[name],
            max_tokens=50,
            scores_N=torch.zeros(rollouts, dtype=torch.float64),
            sizes_G=(8,) * (rollouts // 8),
            lengths_N=torch.ones(rollouts, dtype=torch.int64),
            truncated_N=torch.zeros(rollouts, dtype=torch.bool),
        )
        advantage.step_advantages(scores, torch.device("cpu"))


def token_kernels(spec: ObjectiveSpec) -> None:
    """K2."""
    some_BT = torch.zeros(32, 1024)
    loss.evaluate(
        some_BT,
        LossInputs(
            mask_BT=some_BT,
            sampler_logprobs_BT=some_BT,
            advantages_BT=some_BT,
            weights_BT=some_BT,
            old_logprobs_BT=some_BT,
            reference_logprobs_BT=some_BT,
        ),
        spec,
    )


def head_kernels(dtype: torch.dtype, temperature: float, gradient: str) -> None:
    """K3: the gradient with the loss (one build of the row kernel), or after it (two)."""
    some_BT, ids_BT = torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.int64)
    batch = Batch(
        token_ids_BT=ids_BT,
        targets_BT=ids_BT,
        loss_mask_BT=some_BT + 1.0,
        sampler_logprobs_BT=some_BT,
        advantages_BT=some_BT,
        weights_BT=some_BT,
    )
    hidden, weight = torch.zeros(2, 4, 16, dtype=dtype), torch.zeros(300, 16, dtype=dtype)
    options = HeadOptions(temperature=temperature, gradient=gradient)  # type: ignore[arg-type]
    linear.linear_policy_loss(
        hidden.requires_grad_(), weight.requires_grad_(), batch, PRESETS["grpo"], some_BT, some_BT, options
    )


def main() -> None:
    driver.set_active(Hopper())
    JITFunction.run = compile_only  # type: ignore[method-assign]
    group_kernels("dapo")
    group_kernels("reinforce_pp_baseline")
    for name in ("grpo", "gspo", "cispo"):
        token_kernels(PRESETS[name])
    head_kernels(torch.bfloat16, 1.0, "auto")
    head_kernels(torch.bfloat16, 0.7, "recompute")
    head_kernels(torch.float32, 0.7, "auto")


if __name__ == "__main__":
    main()
