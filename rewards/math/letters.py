"""Where a letter is a choice: ``C`` of "(C) 27" or "C, since 2 is even", not of "C = 12", "(C) fails", "C or maybe D".

A letter is a choice where it stands alone, or has its delimiter and the option's text behind it. The article "A", a
letter of a formula, and a letter that is denied, supposed, excluded or offered beside another are none.
"""

from __future__ import annotations

import re

STYLE = re.compile(r"\\(?:displaystyle|textstyle|left|right|quad|qquad|boxed)(?![A-Za-z])")
_DASH = re.compile(r"\s+[-\u2013\u2014]{1,2}\s+(?:[A-Za-z]{2}|[\d.,]+\s+[a-z]{3})")
_CHOICE = re.compile(
    r"\(?([A-Z])(?:\)|[.:](?![A-Za-z](?![a-z]))|\s+(?:-{1,2}|\u2013|\u2014)(?=\s+[A-Za-z]{2})|(?=\s|$))\s*(.*)",
    re.DOTALL,
)
_BAD = (
    r"(?:wrong|incorrect|false|impossible|eliminated|excluded|ruled|out|invalid|rejected|unlikely|right|correct|untrue"
    r"|(?:an?|the) (?:\w+ )?(?:distractor|trap|decoy|mistake|error|trick|red herring)|inconsistent|absurd|nonsense"
    r"|discarded|refuted|tempting|plausible"
    r"|questionable|doubtful)"
)
#: What is said of the choice instead of its text: "(C) is wrong", "B can't be right", "C: no".
_TURNED_DOWN = re.compile(
    rf"\W*(?:(?:which|that) )?(?:(?:is|would|isn['’]t|was|seems|looks|appears|sounds|can|cannot|can['’]t|could|may"
    rf"|might|must|should|doesn['’]t"
    rf"|does)\b.{{0,40}}?(?:\bnot\b|n['’]t\b|\b{_BAD}\b)"
    r"|(?:cannot|can['’]t|won['’]t|doesn['’]t|isn['’]t|does not|is not)\s+(?:possibly\s+)?(?:be\s+)?(?:it|the answer"
    r"|right"
    r"|correct|true|works?|holds?|fits?|match(?:es)?|satisf(?:y|ies)|happen|so|what)\b"
    rf"|(?:no|nope|nah|not|never|fails?|failed|contradict(?:s|ion)|violates|{_BAD}|(?:the )?wrong \w+|distractor|trap"
    r"|not \w+|ruled out|(?:right|true|correct) elsewhere)\W*(?:$|[.!;?]\s)"
    r"|(?:violates|contradicts)\s+(?:condition|rule|constraint|assumption|equation|step|part)"
    r"|(?:(?:is|looks|seems) )?(?:far |much |way )?too \w+\W*$|(?:contains?|has|makes) (?:an? )?(?:error|mistake"
    r"|flaw)s?\b"
    r"|gives\b.*\bnot\b|not (?:this|that|it|the)\b|[✗❌✘×☒👎]"
    r"|(?:fails|contradicts|violates|disagrees|conflicts)\s+(?:the|with|to|here|at|when|for|because|since|as|on|by)\b)",
    re.IGNORECASE | re.DOTALL,
)
#: What leaves the choice open: a condition, a question, a guess.
_OPEN = re.compile(
    r"\W*(?:\?|(?:if|unless|provided|providing|assuming|supposing|except|only (?:if|when)|or|maybe|perhaps|possibly"
    r"|otherwise|depending|versus|vs|rather than|whenever|but)\b|when\b[^.]*[<>=≤≥≠])"
    r"|.*(?:\b(?:maybe|perhaps|possibly|probably not|(?:a|my|just|only) (?:wild )?guess|guessing|not (?:so |very "
    r"|quite )?(?:sure"
    r"|certain)|unsure|unless|could also|actually|wait|oops|scratch that|on second thought|might also|might be wrong"
    r"|otherwise [A-H])\b|\?\?)",
    re.IGNORECASE | re.DOTALL,
)
#: Another choice beside the first: ``A, B``, ``(A) or (C)``, ``A. 5 B. 6``. Letters within a sentence are none.
_ANOTHER_CHOICE = re.compile(
    r"[\s,;/&]*(?:(?:or|and|maybe|perhaps|either)\W+)?\(?[A-HJ-Z]\)?\s*(?:$|[.:,;)/&]|(?:and|or)\b|[A-Z]\b)"
    r"|.*(?:\([A-H]\)|(?:\d|\bor\b|\band\b)[\s.,;]*[A-H][.:)]\s|[,;]\s*(?:or\s|and\s)?\(?[A-H]\)?\s*$)"
    r"|.*\b(?:or|maybe|perhaps|either)\s+(?:option\s+|choice\s+)?\(?[A-H]\)?\s*$"
    r"|.*[.!;]\s+\(?[A-H][.:)]\s"
    r"|.*\b(?:but|however|although|could be|may be|might be|or is it)\b[^.]{0,40}?(?<![A-Za-z'’])\(?"
    r"[B-H]\)?(?![A-Za-z'’])",
    re.DOTALL,
)


#: "D, it can't be A or B" excludes the others.
_EXCLUDES_OTHERS = re.compile(
    r"^[\s,;.]*(?:(?:it|and|so|but)\s+)?(?:(?:can['’]t|cannot|is not|isn['’]t"
    r"|doesn['’]t make sense for it to)\s+(?:be\s+)?"
    r"|not\s+)\(?[A-H]\)?(?:(?:,|\s+or|\s+and|\s+nor)+\s+\(?[A-H]\)?){0,4}\W*$"
)


def is_option_text(text: str) -> bool:
    """Can this be the text of an option, rather than a verdict on it, a condition, or another choice?"""
    text = _EXCLUDES_OTHERS.sub("", text)
    return not (_ANOTHER_CHOICE.match(text) or _TURNED_DOWN.match(text) or _OPEN.match(text))


def choice_letter(text: str) -> str:
    """``B`` of ``B``, ``(B)``, ``B.``, ``(B) Paris``, ``B: 12 cm``; "" for anything else."""
    return letter_and_choice(text)[0]


_SMALL = re.compile(
    r"[\s*\">_]*(?i:(?:the\s+)?(?:correct |right |final |best )?(?:(?:option|choice|answer)\s*(?:is\b|:)?\s*)?)[*\"]*"
    r"(?:\(([a-h])\)|([b-h])\)?|(?<=[\w:]\s)(a))[\s.*\"]*"
)


def small_choice(text: str) -> str:
    """``C`` of ``c``, ``(c)``, ``option c``: nothing but a choice, in small letters; "" for anything else."""
    found = _SMALL.fullmatch(text) if len(text) < 40 else None
    return "" if found is None else str(found[1] or found[2] or found[3]).upper()


_OPTION_WORD = re.compile(r"(?:option|choice|answer)\s*:?\s*(?=\(?[A-Z]\)?(?![A-Za-z]))", re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|textrm)\s*\{([^{}]*)\}")


def letter_and_choice(text: str) -> tuple[str, str]:
    """The letter of a choice and what stands after it: ``("C", "27")`` of ``(C) 27``, or ``("", "")``."""
    text = STYLE.sub("", text).strip(" $")
    if not text or not (text[0] == "(" or text[0] == "\\" or text[0].isalpha()):
        return "", ""
    bare = _TEXT.sub(r"\1", text).strip(" $")
    bare = _OPTION_WORD.sub("", bare, count=1) if bare[:1].lower() in ("o", "c", "a") else bare
    match = _CHOICE.fullmatch(bare)
    if not match:
        return "", ""
    rest = match[2]
    if not rest:
        return match[1], ""
    marked = bare[0] == "(" or bare[1:2] in (".", ":", ")") or bool(_DASH.match(bare, 1))
    named = match[1] != "A" and re.match(r"[A-Z][a-z]+", rest)
    if not is_option_text(rest) or not (marked or named):
        return "", ""
    return (match[1], rest) if marked or not re.match(r"\s*[-+*/^=,<>_&]", rest) else ("", "")


#: What may close around a letter.
_CLOSES = re.compile(r"(?:_(?![\w{])|[\s*\"”’'`$})\]」】])*")
#: Sentences that say the letter is right, or why: "C is correct", "C works", "C since 2 is even".
_APPROVED = re.compile(
    r"\W*(?:(?:is|must be|has to be|seems|seems to be|appears to be|would be|will be)\s+(?:thus |therefore |clearly "
    r"|definitely |also |indeed )?(?:the\s+|our\s+|my\s+)?(?:only|correct|right|true|valid|best|answer|one|choice"
    r"|option"
    r"|most|final|closest)\b(?!\W+(?:elsewhere|only|if|unless|for (?:another|a different)))"
    r"|(?:works|fits|matches|satisfies|holds|agrees|corresponds|describes|represents)\b"
    r"(?![^.]*\b(?:only (?:for|if|when)|if|unless|neither|only\W*$))"
    r"|because\b|since\b|as\b(?! (?:well|if|long|an?)\b)|(?:which|that|where)\b|whereas\b|while\b|(?:but|and) not\b"
    r"|and (?:it|so|we|this|the|that|nothing|no)\b|(?:not|non)\s+\(?[A-H]\b|above\b|here\b"
    r"|(?:from|among|in|of|for) (?:the|this|these|our) (?:\w+ ){0,2}(?:options|choices|list|question|problem|answers"
    r"|statements)\b)",
    re.IGNORECASE,
)


def stands(text: str, start: int, end: int) -> bool:
    """Is the letter at ``text[start:end]``, brackets included, a choice by what stands right before and behind it?"""
    before, after = text[:start].rstrip("*_\"“'‘`$([{ \n"), text[end:]
    if re.search(r"[\w)\]]$", text[:start]) and not re.search(r"[^\x00-\x7f]$", text[:start]):
        return False
    if _IN_FORMULA.search(before) or after[:1] == "(":
        return False
    closed = text[end - 1] == ")"
    rest = after[_CLOSES.match(after).end() :]  # type: ignore[union-attr]  # it matches the empty text too
    if not rest:
        return True
    closed = closed or ")" in after[: len(after) - len(rest)]
    if re.match(r"[\u3001\u3002\uff00-\uffef\u2e80-\u9fff]", rest):
        return not re.match(r"不(?!是\s*[A-H])|错|或|和|与|以外", rest)
    if re.match(r"[.:,;!](?![\w.:,;!=])|[.:](?=\d|[A-Za-z]{2})", rest):
        return is_option_text(rest[1:].lstrip(' *_"”'))
    if _CALLED.match(rest):
        return True
    if closed and not re.match(r"[-+](?!\d)|[=^_<>*/∪∩≠]", rest):
        return is_option_text(rest)
    if rest[0] == "(" or _DASH.match(after):
        return is_option_text(rest.strip("() -–—."))
    if _APPROVED.match(rest):
        return not _TURNED_DOWN.match(re.sub(r"^\W*(?:which|that)\s+", "", rest))
    named = text[start:end].strip("(") != "A" and re.match(r"[A-Z][a-z]+|\d", rest)
    return bool(named) and is_option_text(rest)


_CALLED = re.compile(
    r"\W*(?:is|must be|has to be|seems|seems to be|appears to be)\s+(?:(?!not)\w+ )?(?:the\s+)?(?:only |most |best )?"
    r"(?:right|correct|true|answer)\b(?!\W+(?:elsewhere|only|if|unless))",
    re.IGNORECASE,
)
#: The letter is part of a formula, the name of a thing, or what is left out.
_IN_FORMULA = re.compile(
    r"(?:[-+=^_<>/&|~!¬≠∪∩∼≈∖]|\\(?!text|math|box|bf|rm|[([])[A-Za-z]+|(?<!\w)(?:points?|vertex|vertices|angles?|lines?"
    r"|sides?|sets?|matrix|events?|vitamin|teams?|grades?|columns?|rows?|steps?|cases?|parts?|figure|class|section"
    r"|person|city|player|variable|hepatitis|anything but|everything but|all but|any but|except(?: for)?|excluding"
    r"|other than|besides|apart from|but|without|unlike|from|versus|vs|instead of|rather than|at|on|through|in"
    r"|inside|outside|near|of))\W*$"
    r"|\b(?:diameter|distance|matrix|set|midpoint|point|letter|cent(?:re|er)|radius|area|angle|vertex|length|name"
    r"|variable"
    r"|function|constant|grade|side|line|event|intersection|height|base|domain|range|group|class|unit|symbol|note"
    r"|first|last"
    r"|degree|foot|tangent|circle|chord)\s+(?:is|be)\W*$",
    re.IGNORECASE,
)
