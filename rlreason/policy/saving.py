"""Writing a model as a plain Hugging Face folder: one that transformers 5, vLLM and, where it can, transformers 4 read.

transformers 5 renamed keys of ``config.json`` and a tokenizer class. transformers 4 takes what it does not find at its
default without a word (``rope_theta`` 10000), so both spellings are written where both readers agree on the meaning.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlreason.errors import UsageError
from rlreason.policy.predictors import PREDICTORS

#: What transformers 4 calls the number of routed experts, by its class of config.
_EXPERTS = {"qwen3_moe": "num_experts", "qwen2_moe": "num_experts", "olmoe": "num_experts"}
#: What a generation config with ``do_sample`` false has no use for.
_OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
#: transformers 5's class of tokenizers without code of their own, and what transformers 4 calls it.
_TOKENIZER_5, _TOKENIZER_4 = "TokenizersBackend", "PreTrainedTokenizerFast"


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (safetensors), config, tokenizer and chat template: a folder transformers and vLLM load."""
    with _ready_to_save(model):
        model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    _write_old_names(folder)
    _follow_umask(folder)


def save_without_weights(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """All of ``save_model`` but the weights, to learn before a run whether they could be saved.

    Raises UsageError where not.
    """
    try:
        with _ready_to_save(model):
            model.config.save_pretrained(folder)
            if model.can_generate():
                model.generation_config.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        _write_old_names(folder)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UsageError(f"its config or tokenizer can't be saved again: {str(error).splitlines()[0]}") from error


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The tokenizer with its chat template; its bytes do not depend on how it was loaded."""
    # transformers notes how the tokenizer was loaded, which says nothing of it and differs from process to process.
    for noise in ("local_files_only", "is_local"):
        tokenizer.init_kwargs.pop(noise, None)
    tokenizer.save_pretrained(folder)


def valid_generation_config(found: GenerationConfig) -> GenerationConfig:
    """``found`` as transformers will write it: it refuses some that it reads, such as a temperature without
    ``do_sample`` (several hub models ship one), and then no weights would be saved either.

    Sampling is switched on where it is asked for and not said to be off; where that is said, what it would sample with
    goes. What is still refused after that is left out but for token ids.
    """
    repaired = copy.deepcopy(found)
    repaired.use_cache = True
    if _valid(repaired):
        return repaired
    if found.do_sample is False:  # said, and not left out: what it would sample with is out of place
        for name in _OF_SAMPLING:
            setattr(repaired, name, None)
    else:
        repaired.do_sample = True
    if _valid(repaired):
        return repaired
    ids = {name: getattr(found, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return GenerationConfig(**ids)


def _valid(config: GenerationConfig) -> bool:
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True


@contextmanager
def _ready_to_save(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the configs say what a user of the checkpoint wants: caches, no layers that it has not, and what
    transformers accepts."""
    before = model.config.use_cache, model.generation_config
    settings = vars(model.config)
    predictors = {name: settings[name] for name in PREDICTORS if name in settings}
    settings |= dict.fromkeys(predictors, 0)
    model.config.use_cache = True
    if model.generation_config is not None:
        model.generation_config = valid_generation_config(model.generation_config)
    try:
        yield
    finally:
        settings |= predictors
        model.config.use_cache, model.generation_config = before


def _write_old_names(folder: Path) -> None:
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config |= {name: value for name, value in _old_names(config).items() if name not in config}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    path = folder / "tokenizer_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.get("tokenizer_class") == _TOKENIZER_5:
            settings["tokenizer_class"] = _TOKENIZER_4
            path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _old_names(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers 4 calls what transformers 5 wrote."""
    found: dict[str, Any] = {}
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        found["rope_theta"] = rope["rope_theta"]
        scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
        if scaling.get("rope_type", "default") != "default":
            found["rope_scaling"] = scaling
        if "partial_rotary_factor" in rope:
            found["partial_rotary_factor"] = rope["partial_rotary_factor"]
    elif config.get("model_type") == "gemma3_text" and {"full_attention", "sliding_attention"} <= rope.keys():
        found["rope_theta"] = rope["full_attention"]["rope_theta"]
        found["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        if rope["full_attention"].get("rope_type", "default") != "default":
            found["rope_scaling"] = {key: value for key, value in rope["full_attention"].items() if key != "rope_theta"}
    if config.get("model_type") == "gpt_neox" and "rope_theta" in rope:
        found |= {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope.get("partial_rotary_factor", 1.0)}
    old = _EXPERTS.get(str(config.get("model_type")))
    if old is not None and "num_local_experts" in config:
        found[old] = config["num_local_experts"]
    return found


def _follow_umask(folder: Path) -> None:
    """safetensors makes its files readable for their owner alone, whatever the umask; the config's mode is right."""
    mode = (folder / "config.json").stat().st_mode & 0o777
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)
