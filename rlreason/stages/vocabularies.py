"""Which ids are one word to a teacher and a student, and why two tokenizers can't share a distribution.

Width is no vocabulary: Qwen2.5 has 151,936 columns at 1.5B and 152,064 at 14B of one tokenizer of 151,665 words. Shared
are the ids of the longest common prefix of id -> word; above it both models are cut, and what they put there is
reported (``padded_mass``).
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from rlreason.errors import UsageError

#: Texts that two tokenizers must cut alike: digits, scripts, code, spaces, punctuation.
PROBES = (
    *(str(7**n) for n in range(1, 40)),
    *("x" + " " * n + "y" for n in range(1, 20)),
    *("\n" * n + "a\tb" for n in range(1, 12)),
    *(f"{a}{b}" for a in "+-*/=<>()[]{}" for b in ("1", " 2", "==")),
    *(f"def f{n}(x):\n    return x**{n} + {n}.5e-3" for n in range(12)),
    *(f"\\frac{{{n}}}{{x_{n}}} \\le \\sqrt[{n}]{{2}}" for n in range(12)),
    "Hello, world!", "don't", "naïve café", "Straße", "e\u0301tude", "ﬁn", "Ａ１", "你好，世界", "こんにちは 世界",
    "안녕하세요", "Привет, мир", "مرحبا", "שלום", "नमस्ते", "🙂👩‍🚀", "𝔘𝔫𝔦", "a\u00a0b", "a\u200bb", "…—–‘’“”",
    "1,234,567.89",
    "3.14159", "0x1F", "10^{-7}", "a_{i,j}", "The answer is \\boxed{42}.", "<think>hm</think>", "<answer>7</answer>",
)  # fmt: skip


def shared_words(teacher: Any, student: Any, where: str) -> int:
    """Ids below the returned number are one word to both tokenizers.

    Raises UsageError naming the first difference that would score wrong words: words of ids that are used, merges, the
    end of a turn, the chat template.
    """
    theirs, ours = ({number: word for word, number in one.get_vocab().items()} for one in (teacher, student))
    both = range(min(len(theirs), len(ours)))
    shared = len(list(takewhile(lambda at: at in theirs and theirs[at] == ours.get(at), both)))
    way_out = "; what serves every pair is text: a reject stage with this teacher and a distill stage (teacher_kl = 0)"
    if shared == 0 or shared < min(len(theirs), len(ours)):
        raise UsageError(
            f"{where}: teacher and student need one vocabulary, and id {shared} is {theirs.get(shared)!r} to the "
            f"teacher and {ours.get(shared)!r} to the student{way_out}"
        )
    for text in PROBES:
        cut = [one.encode(text, add_special_tokens=False) for one in (teacher, student)]
        if cut[0] != cut[1]:
            extra = next((theirs.get(at) or ours.get(at) for at in {*cut[0], *cut[1]} if at >= shared), None)
            reason = f"{extra!r} is one word of one of them alone" if extra else "their merges or normalisers differ"
            raise UsageError(
                f"{where}: teacher and student cut {text!r} into different words ({reason}), so that a token's "
                f"distribution would be of another place{way_out}"
            )
    if teacher.eos_token_id != student.eos_token_id:
        raise UsageError(
            f"{where}: the teacher ends a turn with {teacher.eos_token!r} ({teacher.eos_token_id}) and the student "
            f"with {student.eos_token!r} ({student.eos_token_id}): the student would never learn to stop. Give both "
            "one end token in their tokenizer_config.json"
        )
    _check_templates(teacher, student, where)
    return shared


def _check_templates(teacher: Any, student: Any, where: str) -> None:
    probe = [{"role": "user", "content": "What is 3+4?"}]
    rendered = []
    for one in (teacher, student):
        if one.chat_template is None:
            return
        rendered.append(one.apply_chat_template(probe, tokenize=False, add_generation_prompt=True))
    if rendered[0] != rendered[1]:
        raise UsageError(
            f"{where}: teacher and student write a question differently ({rendered[0][:60]!r} and "
            f"{rendered[1][:60]!r}), and the teacher would score texts in a form that it never saw: give both one "
            "chat_template"
        )
