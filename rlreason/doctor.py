"""`rlreason doctor`: what is installed here and what a run would use."""

from __future__ import annotations

import platform
from importlib.util import find_spec

import rlreason
from rlreason.cores import usable_cores
from rlreason.run.manifest import describe_hardware, installed_packages

#: Package -> what is lost without it, and how to get it.
NEEDED = {
    "torch": "training and sampling: pip install 'rlreason[train]'",
    "transformers": "models and the embedded sampler: pip install 'rlreason[train]'",
    "datasets": "hub data sets: pip install 'rlreason[train]'",
    "pyarrow": "Parquet files: pip install 'rlreason[train]'",
}
#: Likewise, but every recipe runs without.
USEFUL = {
    "ray": "rollout workers in processes and on hosts of their own: pip install 'rlreason[ray]'",
    "vllm": "the vLLM engine: docs/cluster.md says how to install it",
}


def findings() -> list[str]:
    """One line per fact; a line starting with "missing" names the cure."""
    gpus: list[str] = []
    if find_spec("torch") is not None:
        import torch

        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    hardware = describe_hardware(gpus)
    usable = usable_cores()
    lines = [
        f"rlreason {rlreason.__version__}, Python {platform.python_version()} on {platform.system()}",
        f"hardware: {hardware.cpu}, {usable} of {hardware.cores} cores usable, {hardware.memory_gib:g} GiB, "
        + (", ".join(hardware.gpus) or "no GPU: float32 on the CPU"),
        "packages: " + ", ".join(f"{name} {version}" for name, version in installed_packages().items()),
    ]
    missing = [f"missing: {name} ({cure})" for name, cure in NEEDED.items() if find_spec(name) is None]
    absent = [f"absent: {name} ({cure})" for name, cure in USEFUL.items() if find_spec(name) is None]
    return lines + (missing or ["ready: all that `rlreason run` needs is installed"]) + absent
