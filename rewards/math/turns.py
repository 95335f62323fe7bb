"""Where the turn of a response ends: at a token that ends it, and before a next problem that a model made up."""

from __future__ import annotations

import re
from collections.abc import Callable

#: Ends of a turn, and starts of somebody else's, as chat templates write them. ``<|end_of_thought|>`` ends no turn.
_END_TOKEN = re.compile(
    r"<[|｜]\s*(?:im_end|endoftext|end_of_text|end_of_turn|end_of_solution|endofturn|eot_id|eom_id|eot|eos|return"
    r"|end[_▁]of[_▁]sentence|user|system|human|observation)\s*[|｜]>"
    r"|<\|end\|>(?!\s*<\|start\|>assistant)|<\|im_start\|>\s*(?:user|system)|<\|start_header_id\|>\s*(?:user|system)"
    r"|<(?:eos|end_of_turn|EOT)>|<start_of_turn>\s*user|\[INST\]|<[|｜](?:User)[|｜]>|</s>",
    re.IGNORECASE,
)
_FINAL_CHANNEL = "<|channel|>final<|message|>"
#: The start of a line that begins another problem or another speaker's turn.
_NEXT = re.compile(
    r"\n[ \t>*_#\-]*(?:"
    r"(?P<part>(?:next |new |another |sample |similar )*(?:problem|question|exercise|task|instruction|prompt|query|q))"
    r"[ \t]*(?P<number>\d*)[ \t]*\**[ \t]*(?:[:：]|\.\s|$)"
    r"|(?:human|user|assistant|system)[ \t]*\**[ \t]*(?:[:：]|$)"
    r"|(?:问题|题目|用户|下一题|新问题)[ \t]*\d*[ \t]*\**[ \t]*[:：]"
    r"|(?:вопрос|задача|frage|aufgabe|pregunta|problème|domanda|pergunta)[ \t]*\d*[ \t]*\**[ \t]*[:：]"
    r")",
    re.IGNORECASE | re.MULTILINE,
)


def ended(response: str) -> str:
    """The response up to the first token that ends its turn."""
    if "<" not in response and "[INST]" not in response:
        return response
    final = response.rfind(_FINAL_CHANNEL)
    start = final + len(_FINAL_CHANNEL) if final >= 0 else 0
    for token in _END_TOKEN.finditer(response, start):
        if token[0] == "</s>" and "<s>" in response[start + 1 : token.start()]:
            continue  # <s>struck out</s>
        if response[token.end() : token.end() + 1] == "}":
            continue  # a box around a whole response
        return response[start : token.start()]
    return response[start:]


def before_next_problem(text: str, answered: Callable[[str], bool]) -> str:
    """``text`` without a next problem that follows an answer. ``answered``: does a piece of text hold an answer?

    A problem that is restated before it is solved follows no answer; ``Question 2:`` after ``Question 1:`` is a part.
    """
    start = 0  # of what may hold an answer: behind the last line that began a problem
    for tried, line in enumerate(_NEXT.finditer("\n" + text)):
        if tried >= _MOST_TRIED:
            break
        begins = max(line.start() - 1, 0)
        piece = text[start:begins]
        line_end = text.find("\n", line.end() - 1)
        number, part = line["number"], line["part"]
        if number and re.search(rf"\b{re.escape(part)}[ \t]*{int(number[-6:]) - 1}\b", text[:begins], re.IGNORECASE):
            continue
        if piece.strip() and answered(piece):
            return text[:begins]
        start = line_end if line_end >= 0 else len(text)
    return text


_MOST_TRIED = 50
