"""What stands in a box or a ``\\text{}``."""

from __future__ import annotations

import re

from rlreason.rewards.extract import matching_brace

_SENTENCE = re.compile(r"\s*\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mbox)\s*(?=\{)")
_SPACED = re.compile(r"\\[ ,;:!]|~")
_COMMAND = re.compile(r"\\[A-Za-z]+|\\.|[{}$]")


def plain_text(content: str) -> str:
    """``content`` without commands and signs of LaTeX."""
    return _COMMAND.sub(" ", content)


def opened(content: str) -> str:
    """``There are 42`` of ``\\text{There are 42}``; the content itself unless one command holds all of it."""
    command = _SENTENCE.match(content)
    if command is None:
        return content
    close = matching_brace(content, command.end())
    if close < 0 or content[close + 1 :].strip(" .$"):
        return content
    return _SPACED.sub(" ", content[command.end() + 1 : close]).strip()
