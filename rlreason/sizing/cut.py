"""How ranks share a model, for formulas: as ``trainer.parallel`` cuts it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from rlreason.sizing.shape import ModelShape

#: What a layer has a share of on each tensor rank, as configs call it.
_SHARED = {"num_attention_heads", "num_key_value_heads", "intermediate_size"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Example: ``Cut(ranks=8, tensor=2, experts=4)``: 4 rows of samples, and 2 copies of each expert's shards."""

    #: 0: one process with the whole model.
    ranks: int = 0
    #: Ranks with the same samples, each with a part of every matrix of a layer.
    tensor: int = 1
    #: Ranks that hold different experts.
    experts: int = 1

    @property
    def shards(self) -> int:
        """Parts that everything which is stored is in."""
        return max(1, self.ranks)

    @property
    def rows(self) -> int:
        """Ranks with samples of their own: those that a dense layer is gathered over."""
        return max(1, self.shards // self.tensor)

    @property
    def copies(self) -> int:
        """Ranks that a layer's experts are gathered over."""
        return max(1, self.shards // self.experts)

    def layer(self, shape: ModelShape) -> float:
        """Parameters of the largest layer on a rank, once it is gathered."""
        return max(others / self.tensor + routed / self.experts for others, routed in shape.layer_parts)


#: One process.
ALONE = Cut()


def local_config(config: PretrainedConfig, tensor: int) -> PretrainedConfig:
    """A model whose whole layers are what each of ``tensor`` ranks computes of ``config``'s. Numbers that are no
    multiple stay as they are: ``trainer.parallel.check_division`` refuses them."""
    if tensor == 1:
        return config
    found: Any = copy.deepcopy(config)
    known = found.to_dict()
    if "head_dim" in known and not known["head_dim"]:
        found.head_dim = found.hidden_size // found.num_attention_heads
    for key in known.keys() & _SHARED:
        if isinstance(known[key], int) and known[key] % tensor == 0:
            setattr(found, key, known[key] // tensor)
    return found
