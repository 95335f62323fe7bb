"""Words that mean mathematics: units, number words, names of functions, Unicode signs."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
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

# Unit name -> (dimension, size in the base unit of its dimension). Only these convert; other words are labels.
_LENGTH: dict[str, int | str] = {"m": 1, "cm": "1/100", "mm": "1/1000", "km": 1000,
    "inch": "127/5000", "foot": "381/1250",
           "yard": "1143/1250", "mile": "201168/125", "dm": "1/10"}  # fmt: skip
_TIME: dict[str, int | str] = {
    "second": 1,
    "minute": 60,
    "hour": 3600,
    "day": 86400,
    "week": 604800,
    "month": 0,
    "year": 0,
    "ms": "1/1000",
}
_MASS: dict[str, int | str] = {
    "g": 1,
    "kg": 1000,
    "mg": "1/1000",
    "ton": 0,
    "pound": "45359237/100000",
    "ounce": "45359237/1600000",
}
_MONEY: dict[str, int | str] = {
    "dollar": 1,
    "cent": "1/100",
    "euro": 0,
    "pound sterling": 0,
    "yuan": 0,
    "rupee": 0,
    "yen": 0,
}
_VOLUME: dict[str, int | str] = {"liter": 1, "ml": "1/1000", "gallon": 0, "cup": 0, "pint": 0, "quart": 0}
_OTHER: dict[str, int | str] = {
    "radian": 0,
    "newton": 0,
    "joule": 0,
    "watt": 0,
    "volt": 0,
    "ampere": 0,
    "kelvin": 0,
    "hertz": 0,
    "ohm": 0,
}
_TABLES: tuple[tuple[str, dict[str, int | str]], ...] = (
    ("length", _LENGTH), ("time", _TIME), ("mass", _MASS), ("money", _MONEY), ("volume", _VOLUME), ("", _OTHER),
)  # fmt: skip
#: A size of 0 means: a dimension of its own, which converts to nothing.
UNITS: dict[str, tuple[str, Fraction]] = {
    name: (dimension if Fraction(size) else name, Fraction(size) or Fraction(1))
    for dimension, table in _TABLES
    for name, size in table.items()
}
_ALIASES = {
    "meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "kilometer": "km",
    "kilometre": "km", "in": "inch", "inches": "inch", "ft": "foot", "feet": "foot", "yd": "yard", "mi": "mile",
    "s": "second", "sec": "second", "min": "minute", "h": "hour", "hr": "hour", "gram": "g", "kilogram": "kg",
    "lb": "pound", "oz": "ounce", "$": "dollar", "usd": "dollar", "¢": "cent", "€": "euro", "eur": "euro",
    "£": "pound sterling", "¥": "yuan", "rmb": "yuan", "₹": "rupee", "l": "liter", "litre": "liter",
    "milliliter": "ml", "millilitre": "ml", "mL": "ml", "L": "liter", "N": "newton", "J": "joule", "W": "watt",
    "V": "volt", "A": "ampere", "K": "kelvin", "Hz": "hertz", "rad": "radian", "mph": "mile/hour", "kph": "km/hour",
    "kmh": "km/hour", "sq": "square", "cu": "cubic", "yr": "year", "d": "day", "wk": "week", "mins": "minute",
    "hrs": "hour", "secs": "second", "tonne": "ton", "buck": "dollar", "penny": "cent", "pennies": "cent",
}  # fmt: skip
#: One-letter units are read only where it is clear that a unit is meant.
_SHORT = frozenset({"m", "g", "s", "h", "l", "L", "N", "J", "W", "V", "A", "K", "d"})


@lru_cache(maxsize=1024)
def unit_word(word: str) -> str | None:
    """Base name of a unit word (``cms`` -> ``cm``), or None."""
    for form in (word, word.lower(), word.lower().rstrip(".")):
        for stem in (form, form.removesuffix("s"), form.removesuffix("es")):
            name = _ALIASES.get(stem, stem)
            if name in UNITS or name in ("square", "cubic") or "/" in name:
                return name
    return None


def is_short_unit(word: str) -> bool:
    return word in _SHORT


def unit_size(text: str) -> tuple[tuple[tuple[str, int], ...], Fraction] | None:
    """Dimensions and size of a unit text such as ``cm^2`` or ``km/h``; None where a word is not a known unit."""
    dimensions: dict[str, int] = {}
    size, sign, pending = Fraction(1), 1, 1
    for word, exponent in re.findall(r"([A-Za-z$¢€£¥₹]+|/)\s*\.?\s*(?:\^\{?(-?\d)\}?)?", text[:80]):
        if word in ("/", "per", "a", "an"):
            sign = -1
            continue
        name = unit_word(word)
        if name is None:
            return None
        if name in ("square", "cubic"):
            pending = 2 if name == "square" else 3
            continue
        for i, part in enumerate(name.split("/")):
            degree = (int(exponent) if exponent else pending) * (-sign if i else sign)
            dimension, factor = UNITS[part]
            dimensions[dimension] = dimensions.get(dimension, 0) + degree
            size *= factor**degree
        pending = 1
    if not dimensions:
        return None
    return tuple(sorted((d, n) for d, n in dimensions.items() if n)), size


_DIGITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TIES = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: i for i, word in enumerate(_DIGITS.split())}
_TENS = {word: 10 * i for i, word in enumerate(_TIES.split(), start=2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
#: Multipliers that may stand after digits: ``5 million``.
SCALES = {word: size for word, size in _SCALES.items() if size > 100}


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
