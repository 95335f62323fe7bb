"""Models in one GGUF file, the format of llama.cpp: weights, config, tokenizer and chat template, mostly quantised.

transformers reads such a file dequantised, into a model that it refuses to save, and passes over what it does not know
in it. Here a model of a file is a plain one, and what would be passed over is refused.
"""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from rlreason.errors import UsageError
from rlreason.policy.attention import ATTENTION

SUFFIX = ".gguf"
#: Tensors that are no weights of the model: how its rotary positions are stretched.
_ROPE_TENSORS = ("rope_freqs", "rope_factors")
#: Where a file keeps the tokens that end a turn, a text and a message.
_STOPS = ("eos_token_id", "eot_token_id", "eom_token_id")


def is_gguf(place: str | Path) -> bool:
    """Whether ``place`` names a GGUF file, by its ending."""
    return str(place).endswith(SUFFIX)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """What a file says of itself beside config and tokenizer.

    Example: ``GgufFile(weights=134_515_008, stop_ids=(2,), stretched="")``.
    """

    #: Numbers in all of its weights.
    weights: int
    #: Tokens that end a generation.
    stop_ids: tuple[int, ...]
    #: How its rotary positions are stretched, which transformers does not read; "": they are not.
    stretched: str


def describe(file: str | Path) -> GgufFile:
    """Read the header of ``file``. Raises UsageError where the package ``gguf`` is absent or the file is damaged."""
    if find_spec("gguf") is None:
        raise UsageError(f"reading {file} needs the package gguf: pip install 'gguf>=0.10'")
    seen = Path(file).stat()
    try:
        return _described(str(file), seen.st_size, seen.st_mtime_ns)
    except (ValueError, KeyError, IndexError, OSError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{file} is damaged, cut off or no GGUF file ({why}): copy it anew") from error


@lru_cache(maxsize=8)
def _described(file: str, size: int, time: int) -> GgufFile:
    """``size`` and ``time``: those of the file, which say whether it is still the one that was read."""
    del size, time
    from gguf import GGUFReader

    reader: Any = GGUFReader(file)

    def value(key: str) -> Any:
        field = reader.get_field(key)
        return None if field is None else field.contents()

    extra = [one.name for one in reader.tensors if one.name.startswith(_ROPE_TENSORS)]
    scaling = value(f"{value('general.architecture')}.rope.scaling.type")
    ends = [value(f"tokenizer.ggml.{name}") for name in _STOPS]
    return GgufFile(
        weights=sum(int(one.n_elements) for one in reader.tensors if one.name not in extra),
        stop_ids=tuple(dict.fromkeys(int(one) for one in ends if one is not None)),
        stretched=str(scaling) if scaling not in {None, "", "none"} else ", ".join(extra),
    )


def gguf_config(file: str) -> PretrainedConfig:
    """The config of the model in ``file``. Raises UsageError as ``describe`` does, and what transformers raises."""
    found = describe(file)
    if found.stretched:
        raise UsageError(
            f"{file} stretches its rotary positions ({found.stretched}), which transformers does not read from a GGUF "
            "file: the model would be computed wrongly. Use its Hugging Face folder"
        )
    seen = Path(file).stat()
    return copy.deepcopy(_config(file, seen.st_size, seen.st_mtime_ns))


@lru_cache(maxsize=8)
def _config(file: str, size: int, time: int) -> PretrainedConfig:
    """Reading a header with its vocabulary takes seconds."""
    del size, time
    config: PretrainedConfig = AutoConfig.from_pretrained(str(Path(file).parent), gguf_file=Path(file).name)
    vars(config).pop("_model_name_or_path", None)  # a title
    return config


def gguf_tokenizer(file: str) -> PreTrainedTokenizerBase:
    """The tokenizer in ``file``, with the chat template where it has one; raises as ``gguf_config`` does."""
    describe(file)
    seen = Path(file).stat()
    return copy.deepcopy(_tokenizer(file, seen.st_size, seen.st_mtime_ns))


@lru_cache(maxsize=8)
def _tokenizer(file: str, size: int, time: int) -> PreTrainedTokenizerBase:
    del size, time
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        str(Path(file).parent), gguf_file=Path(file).name
    )
    tokenizer.init_kwargs.pop("vocab_file", None)  # the path of the file, and not of a vocabulary
    return tokenizer


def load_gguf(file: str, config: PretrainedConfig, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model of ``file``, dequantised to ``dtype`` and plain: it can be trained and saved. Beside it what
    transformers says of the tensors. Raises what transformers raises."""
    with redirect_stderr(io.StringIO()):  # a progress bar that can't be switched off
        read, found = AutoModelForCausalLM.from_pretrained(
            str(Path(file).parent), gguf_file=Path(file).name, config=config, dtype=dtype, output_loading_info=True
        )
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, dtype=dtype)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    finish(file, model)
    return model, found


def gguf_on_meta(file: str, config: PretrainedConfig) -> PreTrainedModel:
    """The model of ``file`` on the meta device, its weights counted and not read. Raises as ``finish`` does."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
    finish(file, model)
    return model


def finish(file: str, model: PreTrainedModel) -> None:
    """Give ``model`` every token that the file ends a generation with.

    Raises UsageError where the file has more or fewer weights than the model: a part of several, or tensors that
    transformers passes over.
    """
    found = describe(file)
    own = _size(model)
    if own != found.weights:
        raise UsageError(
            f"{file} has {found.weights:,} weights, and {type(model).__name__} of its config {own:,}: it is one part "
            "of several (join them by llama-gguf-split --merge), or a model that transformers does not read whole"
        )
    model.name_or_path = file  # transformers says its folder
    settings = model.generation_config or GenerationConfig.from_model_config(model.config)
    if found.stop_ids:
        settings.eos_token_id = found.stop_ids[0] if len(found.stop_ids) == 1 else list(found.stop_ids)
    model.generation_config = settings


def _size(model: PreTrainedModel) -> int:
    """Numbers in parameters, tied ones once, and in what else is saved with them."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = [one for name, one in model.state_dict().items() if name not in parameters]
    return sum(int(one.numel()) for one in (*model.parameters(), *buffers))
