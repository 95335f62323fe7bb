"""The GPU that a run's trainer will have, asked before anything is built: micro-batches are sized for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from rlreason.cluster.plan import plan_places
from rlreason.cluster.ray_address import find_ray
from rlreason.cluster.session import RaySession, import_ray
from rlreason.config import Recipe
from rlreason.sizing.gpus import GPUS, Gpu, named

#: What a node of Ray calls its kind of GPU among its resources.
_KIND = "accelerator_type:"


def trainer_gpu(recipe: Recipe) -> Gpu | None:
    """The smallest that the trainer may get, by its data sheet as `rlreason plan --gpu` has it; of ranks in a Ray whose
    nodes don't say what they have, the smallest of all that are known. None: a CPU, or a GPU of this process of which
    no data sheet is known.

    Raises UsageError for a Ray that does not answer, and for what can't share GPUs.
    """
    nodes = _nodes(recipe) if recipe.trainer.ranks else None
    if nodes is None:
        return named(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    names = gpu_names(nodes)
    ranks = plan_places(recipe, float(len(names)), 1).ranks
    if ranks is None or not ranks.gpus:
        return None
    known = [one for one in map(named, names) if one is not None]
    return min(known or GPUS.values(), key=lambda one: one.memory)


def gpu_names(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What Ray's live ``nodes`` call their GPUs, a name for each; "" where they don't say."""
    found: list[str] = []
    for node in nodes:
        resources = node["Resources"] if node["Alive"] else {}
        kinds = " ".join(key.removeprefix(_KIND) for key in sorted(resources) if key.startswith(_KIND))
        found += [kinds] * int(resources.get("GPU", 0))
    return found


def _nodes(recipe: Recipe) -> Sequence[Mapping[str, Any]] | None:
    """Of the Ray that the run joins; None: it starts one, which has what this process has."""
    if find_spec("ray") is None:
        return None
    ray, address = import_ray(), recipe.cluster.address
    if not ray.is_initialized() and find_ray(address) is None:
        return None
    session = RaySession(address)
    try:
        nodes: Sequence[Mapping[str, Any]] = session.ray.nodes()
        return nodes
    finally:
        session.close()
