"""Reading models and tokenizers from Hugging Face folders, the hub and GGUF files; what is wrong with one is said in
one line.

``inspect_model`` reads all but the numbers: the checks before a run's first stage use it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from rlreason.config import PolicyConfig
from rlreason.errors import UsageError, nearest
from rlreason.policy.attention import ATTENTION
from rlreason.policy.gguf import gguf_config, gguf_on_meta, gguf_tokenizer, is_gguf, load_gguf
from rlreason.policy.lora import is_adapter
from rlreason.policy.predictors import is_predictor
from rlreason.policy.support import check_supported, own_attention

#: A hub id is owner/name; anything else can only be a folder.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: What makes a folder one of peft's.
_ADAPTER = "adapter_config.json"
#: Tensors named in a message.
_NAMED = 3


def locate_model(path: str | Path) -> str:
    """``path`` where it is a folder with a model's config, a GGUF file, or a hub id.

    Raises UsageError for a folder or file that is not there, without asking the hub for it, and for a folder without a
    config.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if (folder / _ADAPTER).is_file():
            raise UsageError(_of_adapter(folder))
        if not (folder / "config.json").is_file():
            raise UsageError(f"{folder} holds no model: it has no config.json{_elsewhere(folder)}")
        return str(folder)
    name = str(path)
    local = name.startswith((".", "~", "/")) or _HUB_ID.fullmatch(name) is None or Path(name).parent.is_dir()
    if folder.is_file() and is_gguf(folder):
        return str(folder)
    if folder.exists():
        raise UsageError(f"{name} is a file; a model is a folder with config.json and weights, or a .gguf file")
    if is_gguf(name):
        raise UsageError(f"no such file: {name} (a GGUF file of the hub is downloaded first: hf download REPO FILE)")
    if local:
        raise UsageError(f"no such folder: {name} (a model is a folder, a .gguf file, or a hub id such as owner/name)")
    return name


def _of_adapter(folder: Path) -> str:
    try:
        base = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    beside = f" ({folder.parent}?)" if (folder.parent / "config.json").is_file() else ""
    return (
        f"{folder} holds an adapter ({_ADAPTER}) of {base or 'a model that it does not name'}: name the merged "
        f"checkpoint{beside}, or merge the two first (merge_and_unload of peft, save_pretrained to a folder of its own)"
    )


def _elsewhere(folder: Path) -> str:
    """Where a run's or a stage's folder has its checkpoints, or a folder its GGUF files."""
    found = sorted({*folder.glob("checkpoint/config.json"), *folder.glob("stages/*/checkpoint/config.json")})
    if found:
        return f"; did you mean {found[-1].parent}?"
    files = sorted(folder.glob("*.gguf"))
    return f"; did you mean {files[0]}?" if files else ""


def read_config(path: str | Path) -> PretrainedConfig:
    """The config of a model that is supported.

    A list of pad tokens, as some Llama checkpoints have, counts as its first. Raises UsageError naming the path.
    """
    place = locate_model(path)
    try:
        config = _read_config(place)
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise UsageError(f"can't read the model's config in {path}: {_first_line(error)}") from error
    check_supported(config, str(path))
    return config


def _read_config(place: str) -> PretrainedConfig:
    if is_gguf(place):
        return gguf_config(place)
    try:
        return AutoConfig.from_pretrained(place)
    except StrictDataclassError:
        settings, _ = PretrainedConfig.get_config_dict(place)
        pads = settings.get("pad_token_id")
        if not isinstance(pads, list) or not pads or settings.get("model_type") not in CONFIG_MAPPING:
            raise
        return CONFIG_MAPPING[settings["model_type"]].from_dict({**settings, "pad_token_id": pads[0]})


def load_model(path: str | Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load a Hugging Face folder, hub id or GGUF file with its parameters in ``dtype``.

    Raises UsageError naming the path when it can't be read, when its tensors are not exactly the model's, and where the
    model is one that would be computed wrongly.
    """
    return _load(path, dtype).to(device=device)


def inspect_model(path: str | Path) -> PreTrainedModel:
    """The model on the meta device: names and shapes of the checkpoint's tensors are compared, no number is read.

    Raises as ``load_model`` does.
    """
    return _load(path, None)


def _load(path: str | Path, dtype: torch.dtype | None) -> PreTrainedModel:
    """``dtype`` None: on the meta device."""
    config = read_config(path)
    place = locate_model(path)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is wrong with the tensors is raised below
    try:
        model, found = _read(place, config, dtype)
    except UsageError:
        raise
    except SafetensorError as error:
        raise UsageError(f"can't load a model from {path}: {_broken_file(Path(place)) or error}") from error
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        if error.args == (ATTENTION,):
            raise own_attention(config) from error
        raise UsageError(f"can't load a model from {path}: {_first_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    if any(is_adapter(name) for name, _ in model.named_parameters()):  # of the hub: transformers loads both
        raise UsageError(f"{path} has an adapter beside its model, which would be frozen: name one without, or merged")
    _check_tensors(path, model, found)
    loaded: PreTrainedModel = model
    return loaded


def _read(place: str, config: PretrainedConfig, dtype: torch.dtype | None) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what transformers says of its tensors."""
    if is_gguf(place):
        nothing: dict[str, Any] = {"missing_keys": (), "mismatched_keys": (), "unexpected_keys": ()}
        return (gguf_on_meta(place, config), nothing) if dtype is None else load_gguf(place, config, dtype)
    options = {"device_map": "meta"} if dtype is None else {"dtype": dtype}
    model, found = AutoModelForCausalLM.from_pretrained(
        place,
        config=config,
        attn_implementation=ATTENTION,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )
    return model, found


def _check_tensors(path: str | Path, model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    """Raise UsageError where a tensor of the model would stay random, or one of the checkpoint would be left out."""
    name = type(model).__name__
    if found["missing_keys"]:
        raise UsageError(
            f"the checkpoint in {path} lacks tensors of {name}, which would be random: {_few(found['missing_keys'])}"
        )
    if found["mismatched_keys"]:
        shapes = [f"{key} is {list(given)}, not {list(wanted)}" for key, given, wanted in found["mismatched_keys"]]
        raise UsageError(f"tensors of the checkpoint in {path} have other shapes than {name}'s: {_few(shapes)}")
    lost = [one for one in found["unexpected_keys"] if not is_predictor(one, model.config)]
    if lost:
        raise UsageError(f"the checkpoint in {path} has tensors that {name} has not and would lose: {_few(lost)}")


def _few(names: Iterable[str]) -> str:
    first = sorted(names)
    more = f" and {len(first) - _NAMED} more" if len(first) > _NAMED else ""
    return ", ".join(first[:_NAMED]) + more


def _broken_file(folder: Path) -> str:
    """Which safetensors file can't be read; "" where all can."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            return f"{file.name} is damaged or cut off ({_first_line(error)}): copy it anew"
    return ""


def check_shape(config: PretrainedConfig, said: PolicyConfig, path: str) -> None:
    """Raise UsageError where a loaded config differs from what the recipe says of it: another model than meant.

    A name may be an old one that transformers still knows, such as ``num_experts``. ``model_type`` counts where it is
    not the default, which every recipe has.
    """
    given = said.model_type
    if given not in {PolicyConfig.model_fields["model_type"].default, config.model_type}:
        raise UsageError(
            f"{path} is of type {config.model_type!r}, but the recipe's model_type is {given!r}: say "
            f"{config.model_type!r}, or name the other model"
        )
    rope = config.to_dict().get("rope_parameters") or {}
    plain = {name: value for name, value in rope.items() if not isinstance(value, dict)}
    known = {*config.to_dict(), *config.attribute_map, *plain}
    for name, value in said.model.items():
        if name not in known:
            raise UsageError(
                f"{path}: the recipe expects {name} = {value}, which a config of type {config.model_type!r} has "
                f"not{nearest(name, known)}"
            )
        found = plain[name] if name in plain else getattr(config, name)
        if (list(found) if isinstance(found, tuple) else found) != value:
            raise UsageError(f"{path} has {name} = {found}, but the recipe expects {value}")


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder, hub id or GGUF file.

    Raises UsageError where there is none or no chat template.
    """
    place = locate_model(path)
    try:
        tokenizer = gguf_tokenizer(place) if is_gguf(place) else AutoTokenizer.from_pretrained(place)
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise UsageError(f"can't load a tokenizer from {path}: {_first_line(error)}") from error
    if tokenizer.chat_template is None:
        raise UsageError(f"the tokenizer in {path} has no chat template; use an instruct model or add one")
    return tokenizer


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if isinstance(error, StrictDataclassError) else lines[0] if lines else repr(error)
