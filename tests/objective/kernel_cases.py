"""What the tests of the kernels share: where they run, how they compare, and the objectives they cover."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlreason.objective.presets import PRESETS
from rlreason.objective.spec import ObjectiveSpec

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
#: With TRITON_INTERPRET=1 on the CPU; without, the same tests run compiled on a GPU.
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

if INTERPRETED:
    import triton.language as tl
    from triton.runtime import interpreter

    def _call(self: interpreter.InterpretedFunction[Any], *arguments: Any, **named: Any) -> Any:
        """A device function's call. The interpreter looks through Triton's language for what to patch at each one,
        which was half of the tests' time; here only where it has not been patched."""
        languages = [value for value in self.fn.__globals__.values() if value is tl or value is tl.core]
        if any(tl.core.is_builtin(language.arange) for language in languages):
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*arguments, **named)

    interpreter.InterpretedFunction.__call__ = _call  # type: ignore[method-assign]

#: Largest difference, relative to the largest value or 1. Python constants enter a kernel as float32 numbers, which
#: float64 inputs see at 1e-8.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-6}
DTYPES = [torch.float64, torch.float32]

SMALL_STEP = ObjectiveSpec(correction="none")

#: One change on one axis, or several where they belong together.
TOKEN_AXES: Mapping[str, dict[str, Any]] = {
    "clip none": {"clip": "none"},
    "clip ppo": {"clip_low": 0.1, "clip_high": 0.15},
    "clip cispo": {"clip": "cispo", "clip_low": 0.3, "clip_high": 0.4},
    "clip sapo": {"clip": "sapo"},
    "clip dppo_tv": {"clip": "dppo_tv", "clip_low": 0.05, "clip_high": 0.05},
    "dual clip": {"dual_clip": 1.2},
    "delta": {"delta": 1.4},
    "ratio sequence": {"ratio": "sequence_mean", "clip_low": 0.02, "clip_high": 0.03},
    "ratio sequence, sapo": {"ratio": "sequence_mean", "clip": "sapo"},
    "ratio sequence, cispo": {"ratio": "sequence_mean", "clip": "cispo", "clip_low": 0.02, "clip_high": 0.03},
    "ratio geometric": {"ratio": "clipped_mean"},
    "old sampler": {"old": "sampler"},
    "old sampler, sequences": {"old": "sampler", "ratio": "sequence_mean", "clip": "sapo"},
    "ratio on_policy": {"ratio": "on_policy", "clip": "none"},
    "kl k1 in the reward": {"kl_coef": 0.1, "kl_estimator": "k1", "kl_in": "reward"},
    "kl k2": {"kl_coef": 0.1, "kl_estimator": "k2"},
    "kl k3": {"kl_coef": 0.1, "kl_estimator": "k3"},
    "kl k3_unbiased": {"kl_coef": 0.1, "kl_estimator": "k3_unbiased"},
    "tis": {"correction": "tis", "correction_high": 1.2},
    "tis sequence": {"correction": "tis", "correction_level": "sequence_product", "correction_high": 1.2},
    "tis geometric": {"correction": "tis", "correction_level": "sequence_mean", "correction_high": 1.05},
    "mis": {"correction": "mis", "correction_low": 0.5, "correction_high": 1.5},
    "mis sequence": {"correction": "mis", "correction_level": "sequence_product", "correction_low": 0.2},
    "mis geometric": {"correction": "mis", "correction_level": "sequence_mean", "correction_low": 0.9},
    "icepop": {"correction": "icepop", "correction_low": 0.5, "correction_high": 1.5},
    "off-policy mask": {"off_policy_delta": 0.05},
    "clip dppo_kl": {"clip": "dppo_kl", "clip_low": 0.002, "clip_high": 0.003},
    "sequence gate": {"sequence_kl_max": 0.095},
    "gspo with a mask": {"ratio": "sequence_mean", "correction": "mis", "correction_level": "sequence_mean",
                         "off_policy_delta": 0.05},
}  # fmt: skip
#: Draws here are far from the policy: a bound that some sequences keep.
GATED = {"flash_reinforce": replace(PRESETS["flash_reinforce"], sequence_kl_max=0.095)}
TOKEN_SPECS: Mapping[str, ObjectiveSpec] = {
    **PRESETS,
    **GATED,
    **{name: replace(SMALL_STEP, **changes) for name, changes in TOKEN_AXES.items()},
}

GROUP_AXES: Mapping[str, dict[str, Any]] = {
    **{f"{baseline}, {scale}": {"baseline": baseline, "scale": scale}
       for baseline in ("mean", "leave_one_out", "length_weighted", "batch", "none")
       for scale in ("group_std", "batch_std", "batch_whiten", "group_mean", "none")
       if (scale != "group_mean" or baseline == "mean") and (baseline, scale) != ("leave_one_out", "group_std")},
    "opo": {"baseline": "length_weighted", "scale": "none"},
    "ddof 0": {"std_ddof": 0},
    "ddof 0, batch": {"std_ddof": 0, "scale": "batch_std"},
    "epsilon 0": {"std_epsilon": 0.0},
    **{f"overlong {name}": {"overlong": name} for name in ("mask", "mask_from_baseline", "soft_penalty")},
    "overlong share": {"overlong": "soft_penalty", "overlong_share": 0.6, "baseline": "batch"},
}  # fmt: skip
GROUP_SPECS: Mapping[str, ObjectiveSpec] = {
    **PRESETS,
    **{name: ObjectiveSpec(**changes) for name, changes in GROUP_AXES.items()},
}


def difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value or 1."""
    assert actual.shape == expected.shape
    apart = (actual.double().cpu() - expected.double().cpu()).abs()
    assert bool(apart.isfinite().all())
    return float(apart.max() / expected.double().abs().max().clamp(min=1.0).cpu()) if apart.numel() else 0.0
