"""What the content of a box says, without what it wears: colour, a frame, a reason, a sentence in ``\\text{}``."""

from __future__ import annotations

import re

from rlreason.rewards.extract import innermost, matching_brace
from rlreason.rewards.math.chain import chain
from rlreason.rewards.math.prose import stated
from rlreason.rewards.math.wording import changes

_COLOUR = re.compile(r"\\(?:text)?color\s*\{[A-Za-z0-9!]{1,30}\}|\\colorbox\s*\{[A-Za-z0-9!]{1,30}\}")
_END_SIGN = re.compile(
    r"(?:\\[,;:! ]|\\q?quad|\s|\$)*(?:\\(?:blacksquare|square|qed|Box)(?![A-Za-z])|[■□∎✓✔✅])[\s$]*$"
)
_LEADING_SIGN = re.compile(r"\s*(?:\\(?:therefore|Rightarrow|implies|Longrightarrow)(?![A-Za-z])|∴|⇒)\s*")
#: A reason behind the answer: it begins in text and goes on to the end.
_REASON = re.compile(
    r"(?:\\[,;:! ]|\\q?quad|~|\s)*[,;(]?(?:\\[,;:! ]|\s)*\\(?:text|mbox|textrm|mathrm)\s*\{\s*[,;(]?\s*"
    r"(?:since|because|as\s+(?:it|we|the|required|claimed)|i\.?\s?e\.?|that is|due to|by\s)"
)
_SENTENCE = re.compile(r"\s*\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mbox)\s*(?=\{)")
_SPACED = re.compile(r"\\[ ,;:!]|~")


def undressed(content: str) -> str:
    """The answer in the content of a box. Linear; the content itself where it wears nothing."""
    content = innermost(content)
    if "\\" not in content:
        return _END_SIGN.sub("", content) if content and not content.isascii() else content
    content = _COLOUR.sub("", content) if "color" in content else content
    content = _END_SIGN.sub("", content) if _END_SIGN.search(content[-40:]) else content
    leading = _LEADING_SIGN.match(content)
    content = content[leading.end() :] if leading else content
    reason = _REASON.search(content)
    if reason and reason.start() > 0 and not re.search(r"\bor\b", content[reason.end() :]):
        content = content[: reason.start()]
    if "\\begin" in content:
        content = chain(content)
    return opened(content).strip()


def opened(content: str) -> str:
    """``42 apples`` of ``\\text{42 apples}``; the content itself unless one command holds all of it and has a "
    "number."""
    command = _SENTENCE.match(content)
    if command is None:
        return content
    close = matching_brace(content, command.end())
    inner = _SPACED.sub(" ", content[command.end() + 1 : close]).strip() if close >= 0 else ""
    if content[close + 1 :].strip(" .$") or not re.search(r"\d", inner) or not re.search(r"[A-Za-z]{2}", inner):
        return content
    if changes(inner) or "," in inner or ";" in inner:
        return content
    return stated(inner) or content
