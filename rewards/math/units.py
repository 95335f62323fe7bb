"""Units of measure: which words are units, and what they convert to.

A unit is a product of powers of base dimensions and a factor: ``km/h`` is length^1 time^-1, 5/18. SI prefixes are
factors, so ``kW`` needs no entry of its own. Currencies and vague units have a dimension of their own.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

Dimensions = tuple[tuple[str, int], ...]

# Symbols that take SI prefixes: what one of them is. Case matters: mW is not MW.
_SI = {
    "m": "1 m", "g": "1 g", "s": "1 s", "A": "1 A", "K": "1 K", "mol": "1 mol", "cd": "1 cd", "bit": "1 bit",
    "N": "1000 g m s-2", "J": "1000 g m2 s-2", "W": "1000 g m2 s-3", "Pa": "1000 g m-1 s-2", "Hz": "1 s-1",
    "C": "1 A s", "V": "1000 g m2 s-3 A-1", "F": "1/1000 g-1 m-2 s4 A2", "Ω": "1000 g m2 s-3 A-2",
    "T": "1000 g s-2 A-1", "Wb": "1000 g m2 s-2 A-1", "H": "1000 g m2 s-2 A-2", "S": "1/1000 g-1 m-2 s3 A2",
    "lm": "1 lm", "lx": "1 lm m-2", "Bq": "1 Bq", "Gy": "1 m2 s-2", "L": "1/1000 m3", "l": "1/1000 m3",
    "eV": "801088317/5000000000000000000000000 g m2 s-2", "Wh": "3600000 g m2 s-2", "B": "8 bit",
    "cal": "4184 g m2 s-2", "bar": "100000000 g m-1 s-2",
}  # fmt: skip
_PREFIXES = {
    "Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1, "d": -1, "c": -2, "m": -3,
    "μ": -6, "µ": -6, "u": -6, "n": -9, "p": -12, "f": -15, "a": -18,
}  # fmt: skip
_PREFIX_WORDS = {
    "tera": 12, "giga": 9, "mega": 6, "kilo": 3, "hecto": 2, "deci": -1, "centi": -2, "milli": -3, "micro": -6,
    "nano": -9, "pico": -12, "femto": -15,
}  # fmt: skip
_SI_WORDS = {
    "meter": "m", "metre": "m", "gram": "g", "gramme": "g", "second": "s", "ampere": "A", "amp": "A", "kelvin": "K",
    "mole": "mol", "candela": "cd", "bit": "bit", "newton": "N", "joule": "J", "watt": "W", "pascal": "Pa",
    "hertz": "Hz", "coulomb": "C", "volt": "V", "farad": "F", "ohm": "Ω", "tesla": "T", "weber": "Wb", "lumen": "lm",
    "lux": "lx", "becquerel": "Bq", "gray": "Gy", "liter": "L", "litre": "L", "electronvolt": "eV", "byte": "B",
    "calorie": "cal",
}  # fmt: skip
# Names that take no prefix.
_OTHER = {
    "inch": "127/5000 m", "foot": "381/1250 m", "yard": "1143/1250 m", "mile": "201168/125 m", "nmi": "1852 m",
    "Å": "1/10000000000 m", "minute": "60 s", "hour": "3600 s", "day": "86400 s", "week": "604800 s",
    "month": "1 month", "year": "12 month", "decade": "120 month", "century": "1200 month", "tonne": "1000000 g",
    "ton": "1 ton", "pound": "45359237/100000 g", "ounce": "45359237/1600000 g", "dollar": "1 dollar",
    "cent": "1/100 dollar", "euro": "1 euro", "sterling": "1 sterling", "pence": "1/100 sterling", "yuan": "1 yuan",
    "rupee": "1 rupee", "yen": "1 yen", "won": "1 won", "peso": "1 peso", "ruble": "1 ruble", "krone": "1 krone",
    "gallon": "3785411784/1000000000000 m3", "quart": "946352946/1000000000000 m3",
    "pint": "473176473/1000000000000 m3", "cup": "2365882365/10000000000000 m3", "acre": "40468564224/10000000 m2",
    "hectare": "10000 m2", "radian": "1 rad", "atm": "101325000 g m-1 s-2", "mmHg": "133322387415/1000000 g m-1 s-2",
    "torr": "101325000/760 g m-1 s-2", "psi": "1 psi", "knot": "1852/3600 m s-1", "dB": "1 dB",
    "celsius": "1 celsius", "fahrenheit": "1 fahrenheit", "dyne": "1/100 g m s-2", "erg": "1/10000 g m2 s-2",
    "horsepower": "1 hp", "rpm": "1 rpm", "kWh": "3600000000 g m2 s-2",
    "mph": "201168/450000 m s-1", "kph": "5/18 m s-1",
}  # fmt: skip
_ALIASES = {
    "in": "inch", "ft": "foot", "feet": "foot", "yd": "yard", "mi": "mile", "sec": "s", "min": "minute", "h": "hour",
    "hr": "hour", "d": "day", "wk": "week", "yr": "year", "lb": "pound", "oz": "ounce", "$": "dollar", "usd": "dollar",
    "dollar": "dollar", "buck": "dollar", "penny": "cent", "pennies": "cent", "¢": "cent", "€": "euro", "eur": "euro",
    "£": "sterling", "gbp": "sterling", "¥": "yuan", "cny": "yuan", "rmb": "yuan", "₹": "rupee", "inr": "rupee",
    "rs": "rupee", "jpy": "yen", "kmh": "kph", "ha": "hectare", "rad": "radian", "centuries": "century",
    "gal": "gallon", "qt": "quart", "pt": "pint", "°C": "celsius", "℃": "celsius", "°F": "fahrenheit",
    "℉": "fahrenheit", "hp": "horsepower", "angstrom": "Å", "cc": "cm3", "ml": "mL", "KB": "kB", "mins": "minute",
    "元": "yuan", "厘米": "cm", "米": "m", "分米": "dm", "毫米": "mm", "千米": "km", "公里": "km", "克": "g",
    "千克": "kg", "公斤": "kg", "吨": "tonne", "升": "L", "毫升": "mL", "秒": "s", "分钟": "minute", "小时": "hour",
    "天": "day", "年": "year", "月": "month", "公顷": "hectare",
}  # fmt: skip
#: One-letter units are read only where it is clear that a unit is meant.
_SHORT = frozenset("mgshlLNJWVAKdCFTH")
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "平方": 2, "立方": 3}
_POWERS_BEHIND = {"squared": 2, "cubed": 3}
_DIVIDES = frozenset({"/", "per", "a", "an", "每"})
_NONE: tuple[dict[str, int], Fraction] | None = None


def _defined(text: str) -> tuple[dict[str, int], Fraction]:
    """``1000 g m s-2`` -> dimensions and factor."""
    size, dimensions = Fraction(1), dict[str, int]()
    for part in text.split():
        found = re.fullmatch(r"([A-Za-z]+)(-?\d+)?", part)
        if found is None:
            size *= Fraction(part)
        else:
            dimensions[found[1]] = dimensions.get(found[1], 0) + int(found[2] or 1)
    return dimensions, size


def _scaled(base: str, power: int) -> tuple[dict[str, int], Fraction]:
    dimensions, size = _defined(_SI[base])
    return dimensions, size * Fraction(10) ** power


@lru_cache(maxsize=4096)
def _unit(word: str) -> tuple[dict[str, int], Fraction] | None:
    """Dimensions and size of one word; None where it is no unit."""
    if word in _SI:
        return _scaled(word, 0)
    for length in (1, 2):
        prefix, base = word[:length], word[length:]
        if prefix in _PREFIXES and base in _SI and word not in _ENGLISH:
            return _scaled(base, _PREFIXES[prefix])
    for form in (word, word.lower()):
        for stem in dict.fromkeys((form, form.removesuffix("s"), form.removesuffix("es"))):
            found = _named(stem) if stem == form or len(stem) != 2 or stem not in _PREFIXED_PLURALS else _unit(stem)
            if found is not None:
                return found
    lower = word.lower()
    if lower != word and len(lower) > 1 and (word[0] == "K" or word.isupper()) and lower in _LOWER:
        return _unit(lower)
    return _NONE


#: Words and times of day that happen to be a prefix and a unit.
_ENGLISH = frozenset({"am", "as", "pm", "us", "PM", "AM", "al", "hm", "dA", "fA"})
_PREFIXED_PLURALS = frozenset({"cm", "mm", "km", "kg", "mg", "ml", "mL"})
_LOWER = frozenset({"kg", "km", "cm", "mm", "ml", "kj", "kw", "kpa", "khz", "mg", "dm", "kb", "nm"})


def _named(stem: str) -> tuple[dict[str, int], Fraction] | None:
    name = _ALIASES.get(stem, stem)
    if name == "cm3":
        return {"m": 3}, Fraction(1, 10**6)
    if name in _OTHER:
        return _defined(_OTHER[name])
    if name in _SI_WORDS:
        return _scaled(_SI_WORDS[name], 0)
    if name != stem:
        return _unit(name)
    for prefix, power in _PREFIX_WORDS.items():
        base = stem.removeprefix(prefix)
        if base != stem and base in _SI_WORDS:
            return _scaled(_SI_WORDS[base], power)
    return None


@lru_cache(maxsize=4096)
def unit_word(word: str) -> bool:
    """Is the word a unit, or part of one (``square``)?"""
    return word.lower() in _POWERS or _unit(word.rstrip(".")) is not None


def is_short_unit(word: str) -> bool:
    """One letter that is a unit where a number stands before it."""
    return word in _SHORT


_PARTS = re.compile(
    r"(°\s*[CF](?![A-Za-z])|平方|立方|[^\W\d_\u4e00-\u9fff]+|[$¢€£¥₹℃℉/]|[\u4e00-\u9fff]+)\s*\.?\s*(?:\^?\s*\{?(-?\d)\}?)?"
)
#: What may stand between the words of a unit.
_AROUND = " .,^{}()-*·⋅~"
_CHINESE_POWER = re.compile("(平方|立方)(?=.)")


@lru_cache(maxsize=4096)
def unit_size(text: str) -> tuple[Dimensions, Fraction] | None:
    """Dimensions and size of a unit text such as ``cm^2`` or ``km/h``; None where a word is not a known unit."""
    text = text[:80]
    if "\\" in text or "~" in text:
        text = re.sub(r"\\(?:cdot|times)(?![A-Za-z])|\\[,; ]|~", " ", text.replace("\\Omega", "Ω "))
        text = re.sub(r"\\mu\s*", "μ", text.replace("\\circ", "°"))
    text = _CHINESE_POWER.sub(r"\1 ", re.sub(r"\^\s*(?:\{\s*°\s*\}|°)\s*", "°", text))
    text = re.sub(r"\bdegrees?\s+(?=[CF]\w*\b)", "", text)
    if _PARTS.sub("", text).strip(_AROUND):
        return None
    dimensions: dict[str, int] = {}
    size, sign, pending = Fraction(1), 1, 1
    last: tuple[dict[str, int], Fraction] | None = None
    for spaced, exponent in _PARTS.findall(text):
        word = spaced.replace(" ", "")
        if word in _DIVIDES:
            sign = -1
            continue
        if word.lower() in _POWERS:
            pending = _POWERS[word.lower()]
            continue
        if word in _POWERS_BEHIND and last is not None:
            more = (_POWERS_BEHIND[word] - 1) * sign
            _multiply(dimensions, last[0], more)
            size *= last[1] ** more
            last = None
            continue
        last = _unit(word)
        if last is None:
            return None
        degree = (int(exponent) if exponent else pending) * sign
        _multiply(dimensions, last[0], degree)
        size *= last[1] ** degree
        pending = 1
    if not dimensions:
        return None
    return tuple(sorted((d, n) for d, n in dimensions.items() if n)), size


def _multiply(total: dict[str, int], part: dict[str, int], degree: int) -> None:
    for dimension, power in part.items():
        total[dimension] = total.get(dimension, 0) + power * degree


#: Temperatures have no common zero: kelvins are ``(value + offset) * factor``.
TEMPERATURES: dict[Dimensions, tuple[Fraction, Fraction]] = {
    (("celsius", 1),): (Fraction(5463, 20), Fraction(1)),
    (("fahrenheit", 1),): (Fraction(45967, 100), Fraction(5, 9)),
    (("K", 1),): (Fraction(0), Fraction(1)),
}
RADIAN: Dimensions = (("rad", 1),)
