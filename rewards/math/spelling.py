"""Spellings of answers made one before they are cut into tokens: Unicode, HTML, clocks, periods, selections."""

from __future__ import annotations

import html
import re

from rlreason.rewards.math.tree import MAX_LENGTH
from rlreason.rewards.math.words import to_ascii_math

#: Longer texts are not read as mathematics.
_LONGEST = 4 * MAX_LENGTH
_SPECIAL_TOKENS = re.compile(r"<[|｜][^<>|｜]{0,40}[|｜]>|</?s>")


def clean(text: str) -> str:
    """Unicode as LaTeX, doubled backslashes as single ones, end-of-turn tokens gone, one spelling for each notation.

    Example: ``0.\\dot{3}`` becomes ``0.\\overline{3}``, ``{}_8C_2`` becomes ``\\binom{8}{2}``."""
    if len(text) > _LONGEST or _SEPARATED.fullmatch(text):
        return (re.sub(r"['.]", "", text) if len(text) < _LONGEST else text).strip()
    if "<" in text or "&" in text:
        text = _markup(_SPECIAL_TOKENS.sub("", text))
    if not text.isascii():
        text = _CHINESE_JOIN.sub(lambda m: f" {_CHINESE_WORDS[m[0]]} ", _OVERLINED.sub(_as_overline, text))
        text = to_ascii_math(text)
    if "\\\\" in text:
        if "\\\\begin" in text:
            text = text.replace("\\\\", "\\")
        elif "\\begin" not in text:
            text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)
    if ":" in text:
        text = _TIME_IN_TEXT.sub(r"\1", text.replace("{:}", ":"))
        text = _CLOCK.sub(lambda m: f"{m[1]}\\text{{{m[2].lower()}m}}", text)
    if "10" in text:
        text = _TIMES_LETTER.sub(r"\1\\times \2", text)
    if text.lstrip(" ${").startswith(("_", "^", "}_", "}^", "} _", "} ^")):
        text = _SELECTION.sub(_selection, text)
    if "\\" in text:
        text = _of_latex(text)
    elif "and" in text:
        text = _AND_PART.sub(lambda m: f"{m[1]} {_PART_OF[m[2]]}", text)
    if "(" in text:
        text = _UNIT_IN_BRACKETS.sub(_bracketed_unit, _PERIOD.sub(r"\1\\overline{\2}", text))
    return text.strip()


#: 1'000'000 and 1.000.000
_SEPARATED = re.compile(r"\s*-?\d{1,3}(?:(?:'\d{3})+|(?:\.\d{3}){2,})\s*")
_CLOCK = re.compile(r"(:\d\d\s*)(?:\\text\s*\{\s*)?([aApP])\.?\s?[mM](?:\b\.?|\.)(?:\s*\})?")
#: A whole time in a text: its braces go, as those of its half do.
_TIME_IN_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{\s*(\d{1,2}:\d\d\s*[aApP]\.?\s?[mM]\.?)\s*\}")
_TIMES_LETTER = re.compile(r"(\d\s*)[xX](\s*10\s*(?:\^|\*\*))")
_HTML_ENTITY = re.compile(r"&(?:[A-Za-z]{2,8}|#\d{1,6}|#x[0-9a-fA-F]{1,5});")
_MIXED = re.compile(r"^(\W*\d+)\s*&\s*(\d+\s*/\s*\d+\W*)$")
_HTML_RAISED = re.compile(r"<(sup|sub)>([^<>]{0,60})</\1>", re.IGNORECASE)
_HTML_TAG = re.compile(r"</?(?:b|i|u|em|strong|p|span|div|var|math|br)\s*/?>", re.IGNORECASE)


def _markup(text: str) -> str:
    """HTML, and ``3&1/2`` for 3 1/2."""
    text = _MIXED.sub(r"\1 \2", _HTML_ENTITY.sub(lambda m: html.unescape(m[0]), text))
    text = _HTML_RAISED.sub(lambda m: f"{'^' if m[1].lower() == 'sup' else '_'}{{{m[2]}}}", text)
    return _HTML_TAG.sub(" ", text)


#: A connective counts where no other Chinese word goes on behind it: 3或-2, but not 和谐.
_CHINESE_JOIN = re.compile(r"(?<=[^\s])(?:或者|或|以及|和|与|及|并且|且)(?=\s*[^\s\u4e00-\u9fff，。；：、])")
_CHINESE_WORDS = {
    "或": "or", "或者": "or", "和": "and", "与": "and", "及": "and", "以及": "and", "且": "and", "并且": "and",
}  # fmt: skip
_OVERLINED = re.compile("(?<=[.\\d])(?:\\d[\u0304\u0305])+|(?<=[.\\d])\\d\u0307(?:\\d*\\d\u0307)?")


def _as_overline(match: re.Match[str]) -> str:
    return "\\overline{" + re.sub("[\u0304\u0305\u0307]", "", match[0]) + "}"


# 0.\dot{1}2\dot{3}: the period goes from the first dot to the second.
_DOTS = re.compile(r"(?<=[.\d])\\dot\s*\{?\s*(\d)\s*\}?(?:(\d*)\\dot\s*\{?\s*(\d)\s*\}?)?")
_PERIOD = re.compile(r"(?<![\d.])(\d+\.)\((\d+)\)")
_SELECTION = re.compile(
    r"(?:\{\s*\}\s*)?([_^])\s*(\{\s*\w+\s*\}|\w)\s*(?:\\(?:mathrm|text|rm)\s*)?\{?\s*([CPA])\s*\}?\s*_\s*(\{\s*\w+\s*\}|\w)"
)
_END_MARKS = ("\\blacksquare", "\\square", "\\Box", "\\qed", "\\qedsymbol", "■", "□", "∎")
_ARROW = re.compile(r"^[\s$]*\\(?:Rightarrow|implies|therefore|Longrightarrow|rightarrow|to|quad)(?![A-Za-z])\s*")
_PART_OF = {"half": "1/2", "quarter": "1/4", "third": "1/3"}
_AND_PART = re.compile(r"(?<![\d.])(\d+)\s+and\s+(?:an?|one)\s+(half|quarter|third)\b")


def _of_latex(text: str) -> str:
    if "quad" in text:
        text = re.sub(r"\\q?quad(?=[A-Za-z])", " ", text)  # \quadx
    if "\\dot" in text:
        text = _DOTS.sub(lambda m: f"\\overline{{{m[1]}{m[2] or ''}{m[3] or ''}}}", text)
    if "square" in text or "Box" in text or "qed" in text:
        text = _without_end_mark(text)
    if text.lstrip(" $").startswith("\\"):
        text = _ARROW.sub("", text)
    return _without_reason(text) if "\\text" in text or "\\mbox" in text else text


def _selection(match: re.Match[str]) -> str:
    n, k = match[2].strip("{ }"), match[4].strip("{ }")
    chosen = f"\\binom{{{n}}}{{{k}}}"
    return chosen if match[3] == "C" else f"{chosen}*({k})!"


def _without_end_mark(text: str) -> str:
    shown = text.rstrip(" \n$.")
    mark = next((m for m in _END_MARKS if shown.endswith(m)), "")
    return shown.removesuffix(mark).rstrip() or text


#: What follows is why, and no part of the answer.
_REASON = re.compile(
    r"\\(?:text|mbox|textrm|textit)\s*\{[\s,;(]*(?:since|because|as\s|i\.e|due to|namely|given that)", re.IGNORECASE
)


def _without_reason(text: str) -> str:
    found = _REASON.search(text)
    return (text[: found.start()].rstrip(" \n\t,;(") if found else "") or text


_UNIT_IN_BRACKETS = re.compile(r"\(\s*([A-Za-z][A-Za-z .^/\d]{0,30}|[\u4e00-\u9fff]{1,6})\s*\)[\s$.]*$")


def _bracketed_unit(match: re.Match[str]) -> str:
    from rlreason.rewards.math.units import unit_size

    words, before = match[1], match.string[: match.start()].rstrip()[-1:]
    if not (before.isdigit() or before == "}"):
        return match[0]
    if unit_size(words) is None and not re.fullmatch(r"units?|[a-z]{4,}|[\u4e00-\u9fff]+", words):
        return match[0]
    return f"\\text{{ {words}}}"
