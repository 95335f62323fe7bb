"""Layers for multi-token prediction (MTP) that DeepSeek-V3 and GLM-4.5 checkpoints bring behind their own: transformers
builds none, so they are left out, which is said, and what is saved claims none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
#: What configs call the number of such layers.
PREDICTORS = ("num_nextn_predict_layers", "num_mtp_modules", "mtp_num_hidden_layers")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def predictors_left_out(place: str, model: PreTrainedModel) -> int:
    """Tensors of the folder or hub id that are of such layers, which ``model`` has not. Only safetensors are read."""
    ignored = [re.compile(one) for one in model._keys_to_ignore_on_load_unexpected or ()]
    names = _tensor_names(place)
    return sum(is_predictor(one, model.config) or _is_ignored_mtp(one, ignored) for one in names)


def is_predictor(name: str, config: PretrainedConfig) -> bool:
    """Whether a tensor is of a layer behind the model's own ones, in a family that has such layers."""
    known = {*config.to_dict(), *config.attribute_map}
    if "num_hidden_layers" not in known or not any(one in known for one in PREDICTORS):
        return False
    found = _LAYER.search(name)
    return found is not None and int(found.group(1)) >= config.num_hidden_layers


def _is_ignored_mtp(name: str, ignored: Iterable[re.Pattern[str]]) -> bool:
    """Whether transformers passes over a tensor that has MTP in its name, as Qwen's are."""
    return "mtp" in name.split(".") and any(one.search(name) for one in ignored)


def _tensor_names(place: str) -> list[str]:
    index, single = _file_of(place, _INDEX), _file_of(place, _SINGLE)
    if index is not None:
        return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    if single is None:
        return []
    with safe_open(single, framework="pt") as file:
        return list(file.keys())


def _file_of(place: str, name: str) -> Path | None:
    if not place:  # a model built from nothing
        return None
    if Path(place).is_dir():
        return Path(place, name) if Path(place, name).is_file() else None
    if Path(place).exists():
        return None
    cached = try_to_load_from_cache(place, name)
    return Path(cached) if isinstance(cached, str) else None
