"""Tokenizers made on the spot for models trained from nothing; saved beside the model as a plain folder."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlreason.data.prompts import PLAIN_CHAT_TEMPLATE, TAGS

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unknown|>"


def character_tokenizer(alphabet: Iterable[str]) -> PreTrainedTokenizerBase:
    """One token per character of ``alphabet``; the think and answer tags are one token each."""
    tokens = [PAD, END, UNKNOWN, *TAGS, *sorted(set(alphabet))]
    core = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return _wrap(core)


def bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Byte-level BPE of ``vocab_size`` tokens trained on ``texts``; numbers are split into single digits."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, UNKNOWN, *TAGS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return _wrap(core)


def _wrap(core: Tokenizer) -> PreTrainedTokenizerBase:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
    # One token each for the model, but text to whoever decodes with skip_special_tokens: not special.
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    return tokenizer
