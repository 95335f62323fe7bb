"""Words that mean mathematics: number words, names of functions, relations, Unicode signs."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: LaTeX or plain name -> our name, for functions of one argument written ``\sin x`` or ``sin(x)``.
FUNCTIONS = {
    name: name
    for name in word_set(
        "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech csch "
        "ln log lg exp sqrt abs floor ceil det cis gcd lcm max min Re Im arg sgn erf cbrt"
    )
} | {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "log10": "lg", "Gamma": "gamma", "ceiling": "ceil",
    "sign": "sgn", "arsinh": "arcsinh", "arcsinh": "arcsinh", "arccosh": "arccosh", "arctanh": "arctanh", "tg": "tan",
    "ctg": "cot", "arctg": "arctan", "cosec": "csc", "root": "sqrt", "real": "Re", "imag": "Im",
}  # fmt: skip

GREEK = word_set(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega varphi vartheta varepsilon"
)

RELATIONS = {
    "=": "=", "==": "=", ":=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "\\le": "<=",
    "\\leq": "<=", "\\leqslant": "<=", "\\leqq": "<=", "\\ge": ">=", "\\geq": ">=", "\\geqslant": ">=",
    "\\geqq": ">=", "\\lt": "<", "\\gt": ">", "\\ne": "!=", "\\neq": "!=", "\\in": "in", "\\approx": "~",
    "\\simeq": "~", "\\equiv": "=", "\\cong": "~", "\\sim": "~", "\\notin": "notin", "\\to": "to",
    "\\rightarrow": "to", "\\mapsto": "to", "\\perp": "perp", "\\parallel": "parallel", "\\subset": "subset",
    "\\subseteq": "subset", "\\propto": "~", "\\doteq": "~",
}  # fmt: skip

_DIGITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TIES = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: i for i, word in enumerate(_DIGITS.split())}
_TENS = {word: 10 * i for i, word in enumerate(_TIES.split(), start=2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
#: Multipliers that may stand after digits: ``5 million``.
SCALES = _SCALES | {"lakh": 10**5, "lac": 10**5, "crore": 10**7, "dozen": 12, "万": 10**4, "亿": 10**8, "百": 100,
                    "千": 1000, "百万": 10**6, "quadrillion": 10**15, "quintillion": 10**18, "bn": 10**9,
                    "mil": 10**6, "mln": 10**6, "mn": 10**6, "bln": 10**9, "tn": 10**12, "trn": 10**12}  # fmt: skip


def number_from_words(text: str) -> int | None:
    """``One thousand six hundred twenty-five`` -> 1625; None for anything else."""
    words = re.findall(r"[a-z]+", text.lower()) if len(text) < 200 else []
    if not words or re.search(r"[^A-Za-z\s,.-]", text):
        return None
    negative = words[0] in ("minus", "negative")
    total = current = 0
    seen = False
    for word in words[negative:]:
        if word in _SMALL or word in _TENS:
            current += _SMALL.get(word, 0) + _TENS.get(word, 0)
            seen = True
        elif word == "hundred" and seen:
            current *= 100
        elif word in _SCALES and seen:
            total, current = total + current * _SCALES[word], 0
        elif word != "and":
            return None
    return (-(total + current) if negative else total + current) if seen else None


_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ", "0123456789+-()n")
_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "\\times ", "✕": "\\times ", "·": "\\cdot ",
    "⋅": "\\cdot ", "∙": "\\cdot ", "∗": "*", "÷": "\\div ", "∕": "/", "⁄": "/", "√": "\\surd ", "∛": "\\sqrt[3]",
    "∞": "\\infty ", "±": "\\pm ", "∓": "\\mp ", "≤": "\\le ", "≥": "\\ge ", "⩽": "\\le ", "⩾": "\\ge ",
    "≠": "\\ne ", "≈": "\\approx ", "≡": "\\equiv ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ",
    "ø": "\\emptyset ", "∖": "\\setminus ", "°": "^\\circ ", "º": "^\\circ ", "˚": "^\\circ ", "′": "'", "’": "'",
    "″": "''", "π": "\\pi ", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}", "ℚ": "\\mathbb{Q}",
    "ℂ": "\\mathbb{C}", "⟨": "\\langle ", "⟩": "\\rangle ", "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ",
    "⌉": "\\rceil ", "∣": "|", "∑": "\\sum ", "∏": "\\prod ", "∫": "\\int ", "。": ".", "，": ",", "、": ",",
    "；": ";", "：": ":", "（": "(", "）": ")", "∠": "\\angle ", "△": "\\triangle ", "→": "\\to ", "∧": " and ",
    "∨": " or ", "“": '"', "”": '"', "ϕ": "\\phi ", "ε": "\\epsilon ",
}  # fmt: skip
_VULGAR = re.compile(r"(\d?)([¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])")
_INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\u00ad]")


def to_ascii_math(text: str) -> str:
    """Unicode signs as LaTeX, compatibility letters and all decimal digits as ASCII, invisible characters dropped."""
    if text.isascii():
        return text
    text = _INVISIBLE.sub("", text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ]+", lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ]+", lambda m: "_{" + m[0].translate(_SUBSCRIPTS) + "}", text)
    text = _VULGAR.sub(_vulgar, text)
    return "".join(_sign(char) for char in text)


def _vulgar(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match[2]).partition("\u2044")
    return f"{match[1]}\\frac{{{top}}}{{{bottom}}}"


@lru_cache(maxsize=4096)
def _sign(char: str) -> str:
    if char.isascii():
        return char
    if char in _SIGNS:
        return _SIGNS[char]
    digit = unicodedata.decimal(char, None)
    if digit is not None:
        return str(digit)
    name = unicodedata.name(char, "")
    if name.startswith(("CIRCLED", "PARENTHESIZED")):
        return char  # the number of a statement, not a number
    if name.startswith("GREEK ") and " LETTER " in name and " WITH " not in name:
        letter = name.rpartition(" ")[2].lower().replace("lamda", "lambda")
        letter = letter.capitalize() if "CAPITAL" in name else letter
        if letter in GREEK:
            return f"\\{letter} "
    plain = unicodedata.normalize("NFKC", char)
    return " " if plain.isspace() else "".join(_SIGNS.get(c, c) for c in plain)
