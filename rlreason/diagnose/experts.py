"""What a step did with a model's experts, layer by layer: load, balance, dead ones, and agreement with the sampler.

L = layers with experts, E = experts, K = experts per token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

import torch
from torch import Tensor

from rlreason.objective.batch import ExpertCounts

#: One line for each step.
EXPERTS = "experts.jsonl"
#: Choices that an expert would have in a balanced layer, from which on one without any is called dead: by chance alone
#: that happens once in e ** 20 times.
EXPECTED = 20.0
#: What metrics tell of the layers, and which of them is the worst.
WORST = {"entropy": min, "max_violation": max, "dead": max, "agreement": min, "balance_share": max}


def layers_of(counts: ExpertCounts) -> dict[str, list[float] | list[list[float]]]:
    """Of each layer, by name:

    * ``load``: the share of all choices that each expert had, [L, E];
    * ``entropy``: of that load, from 0 (the same K experts take every token) to 1 (balanced): (H − log K) / (log E −
      log K), as no load can have less than log K;
    * ``max_violation``: the largest load over the mean load, less 1 (MaxVio, arXiv 2408.15664): 0 is balanced;
    * ``dead``: the share of experts without any token, where a balanced layer would give each ``EXPECTED``;
    * ``agreement``: of the tokens whose experts somebody had chosen before, the share for which the router's own choice
      is the same set. Only where that was known.
    """
    load_LE = counts.load_LE.double()
    total_L1 = load_LE.sum(dim=1, keepdim=True).clamp(min=1.0)
    share_LE = load_LE / total_L1
    experts, chosen = load_LE.shape[1], counts.chosen
    least, most = math.log(chosen), math.log(experts)
    entropy_L = torch.special.entr(share_LE).sum(dim=1)
    entropy_L = (entropy_L - least) / (most - least) if experts > chosen else torch.ones_like(entropy_L)
    found: dict[str, list[float] | list[list[float]]] = {
        "load": [[round(one, 6) for one in row] for row in share_LE.tolist()],
        "entropy": entropy_L.tolist(),
        "max_violation": (share_LE.max(dim=1).values * experts - 1.0).tolist(),
    }
    if float(total_L1.min()) >= EXPECTED * experts:
        found["dead"] = (load_LE == 0).double().mean(dim=1).tolist()
    if bool((counts.compared_L > 0).all()):
        found["agreement"] = (counts.agreed_L.double() / counts.compared_L.double()).tolist()
    return found


def balance_shares(squares_L2: Tensor) -> list[float]:
    """||b|| / (||b|| + ||r||) of each layer (``trainer.balance``) from the squares of both; empty where a layer's
    router logits got no gradient."""
    norms_L2 = squares_L2.sqrt()
    total_L = norms_L2.sum(dim=1)
    return (norms_L2[:, 0] / total_L).tolist() if bool((total_L > 0).all()) else []


def scalars_of(layers: Mapping[str, list[float] | list[list[float]]]) -> dict[str, float]:
    """The metrics of a step: means over the layers, and the worst of them."""
    found: dict[str, float] = {}
    for name, worst in WORST.items():
        if name in layers:
            values = [float(one) for one in layers[name] if isinstance(one, float)]
            found |= {f"experts/{name}": fmean(values), f"experts/{name}_worst": worst(values)}
    return found
