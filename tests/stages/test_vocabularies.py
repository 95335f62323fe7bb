"""Two tokenizers of one vocabulary, and each way in which they may not be: docs/distill.md."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlreason.errors import UsageError
from rlreason.policy.tokenizer import bpe_tokenizer
from rlreason.stages.vocabularies import PROBES, shared_words


def tokenizer() -> Any:
    return bpe_tokenizer([*PROBES, "hello world, how are you"] * 3, 400)


def test_one_vocabulary_and_more_words_behind_it() -> None:
    """Qwen3 has four words more than Qwen2.5: shared are those of both."""
    one, other = tokenizer(), tokenizer()
    words = len(one.get_vocab())
    assert shared_words(one, other, "here") == words
    other.add_tokens(["<brand_new_word>"])
    assert shared_words(other, one, "here") == shared_words(one, other, "here") == words


def test_think_as_one_word_is_refused_with_the_reason() -> None:
    one, other = tokenizer(), tokenizer()
    other.add_tokens(["naïve"])
    with pytest.raises(
        UsageError, match=r"into different words \('naïve' is one word of one of them alone\).*text: a re"
    ):
        shared_words(other, one, "here")


def test_other_words_are_refused_by_their_ids() -> None:
    other = bpe_tokenizer(["quite another text", "with zz other words"] * 9, 400)
    with pytest.raises(
        UsageError, match=r"here: .* need one vocabulary, and id \d+ is .* to the teacher and .* student"
    ):
        shared_words(tokenizer(), other, "here")


def test_a_normaliser_alone_is_seen() -> None:
    one, other = tokenizer(), tokenizer()
    other.backend_tokenizer.normalizer = normalizers.NFKC()
    with pytest.raises(UsageError, match=r"into different words \(their merges or normalisers differ\)"):
        shared_words(one, other, "here")


def test_merges_alone_are_seen() -> None:
    """The same words in the same order, joined in another order."""

    def of(merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
        letters = sorted({letter for text in PROBES for letter in text})
        words = ["<eos>", *letters, "1" + "6", "6" + "8"]
        vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
        made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        made.pre_tokenizer = pre_tokenizers.Split(Regex("\\s"), "isolated")
        return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")

    one, other = of([("1", "6"), ("6", "8")]), of([("6", "8"), ("1", "6")])
    assert one.get_vocab() == other.get_vocab()
    assert shared_words(one, copy.deepcopy(one), "here") == len(one.get_vocab())
    with pytest.raises(UsageError, match="their merges or normalisers differ"):
        shared_words(one, other, "here")


def test_ends_of_a_turn_are_one_token() -> None:
    """swift #9526: a student that ends with 151,643 learnt from a teacher that ends with 151,645, and never stopped."""
    one, other = tokenizer(), tokenizer()
    other.eos_token = "a"
    with pytest.raises(
        UsageError, match=r"the teacher ends a turn with 'a' \(\d+\) and the student .* never learn to stop"
    ):
        shared_words(other, one, "here")


def test_templates_write_a_question_alike() -> None:
    one, other = tokenizer(), tokenizer()
    other.chat_template = "{% for m in messages %}Q: {{ m['content'] }}{% endfor %}"
    with pytest.raises(UsageError, match=r"write a question differently \('Q: What is 3\+4\?' and .*one chat_template"):
        shared_words(other, one, "here")
