"""Texts that are the same, nearly the same, or share words with a benchmark."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rlreason.errors import UsageError

#: Words of a shingle, and minima of a MinHash (Broder 1997).
SHINGLE, MINIMA = 5, 128
_WORD = re.compile(r"[^\W_]+|[+\-*/=<>^]")
#: LaTeX that changes nothing of what is said.
_NOISE = re.compile(r"\\(?:left|right|displaystyle|,|;|!|quad|qquad|text|mathrm|mathbf|bigl?|bigr?)\b|\\[,;! ]")
_COLUMNS = ("prompt", "problem", "question")


def normal_words(text: str) -> list[str]:
    """Words without case, spacing, punctuation and LaTeX's dress, for what is to be found in any dress; what is to be
    told apart goes by ``exact_words``. ``\\dfrac{1}{2}`` and ``\\frac12`` stay apart."""
    plain = unicodedata.normalize("NFKC", _NOISE.sub(" ", text)).lower().replace("\\dfrac", "\\frac")
    return _WORD.findall(plain.replace("\\tfrac", "\\frac"))


#: What is one sign under several spellings: LaTeX, ASCII, other code points.
_SPELLED = {
    " ⏎ ": r"\\\\",  # a new row of a matrix
    "≤": r"\\(?:leqslant|leqq|leq|le)(?![A-Za-z])|<=|=<",
    "≥": r"\\(?:geqslant|geqq|geq|ge)(?![A-Za-z])|>=",
    "≠": r"\\(?:neq|ne)(?![A-Za-z])|!=|\\not\s*=",
    "<": r"\\lt(?![A-Za-z])",
    ">": r"\\gt(?![A-Za-z])",
    "×": r"\\times(?![A-Za-z])",
    "·": r"\\cdot(?![A-Za-z])|⋅",
    "÷": r"\\div(?![A-Za-z])",
    "±": r"\\pm(?![A-Za-z])",
    "∞": r"\\infty(?![A-Za-z])",
    "|": r"\\(?:[lr]?vert|mid)(?![A-Za-z])",
    "-": r"[\u2010-\u2015\u2212]",
    "/": r"\u2044",
    "'": r"[\u2018\u2019\u2032]|\\prime(?![A-Za-z])",
    r"\\frac": r"\\[dt]frac(?![A-Za-z])",
    r" \1 ": r"\\(?:text|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}",
    "": r"\$|\\[()\[\]]",  # where mathematics begins and ends
}
_SPELLINGS = [(re.compile(pattern), sign) for sign, pattern in _SPELLED.items()]
#: Superscripts, which NFKC would write as plain digits: x² is x^2 and not x2.
_RAISED = re.compile("[⁰¹²³⁴-⁹]+")
#: Words, and the marks that say something: a point before a digit, a sign of exclamation behind a number, a bracket or
#: a single letter, a colon between digits, an apostrophe that is in no word. Commas and ends of sentences say nothing.
_EXACT = re.compile(
    r"""[^\W_]+ | \\[{}%&\#] | \.(?=\d) | (?<=[\d)\]}])\s*! | (?<=(?<![^\W_])[^\W\d_])! | (?<=\d)\s*:(?=\s*\d)
    | (?<![^\W\d_])' | '(?![^\W\d_]) | _+ | [^\w\s\\.,;:?!'"“”„…]""",
    re.VERBOSE,
)
_PLAIN = {"\\%": "%", "\\&": "&", "\\#": "#"}


def exact_words(text: str) -> list[str]:
    """Words and every sign that carries meaning, equal under case, spacing and LaTeX's spelling.

    ``(2+3)*4`` is not ``2+(3*4)``, ``7%`` not ``7!``, ``x ≤ 3`` not ``x ≥ 3``; ``x \\le 3`` and ``$x<=3$`` are one.
    """
    plain = _RAISED.sub(lambda found: f"^{{{unicodedata.normalize('NFKC', found.group())}}}", text)
    plain = unicodedata.normalize("NFKC", plain)
    for pattern, sign in _SPELLINGS:
        plain = pattern.sub(sign, plain)
    signs = _EXACT.findall(_NOISE.sub(" ", plain).lower())
    found: list[str] = []
    for one in map(str.strip, signs):
        if one == "}" and len(found) > 1 and found[-2] == "{":  # braces around one word say nothing
            del found[-2]
        else:
            found.append(_PLAIN.get(one, "_" if one.startswith("_") else one))
    return found


def exact(text: str) -> str:
    """The same as one text."""
    return " ".join(exact_words(text))


def grams(words: Sequence[str], n: int) -> set[tuple[str, ...]]:
    """All n words in a row; a shorter text as a whole."""
    if len(words) < n:
        return {tuple(words)} if words else set()
    return {tuple(words[at : at + n]) for at in range(len(words) - n + 1)}


def jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    """Shared shingles among all; 0 of two empty texts."""
    union = len(one | other)
    return len(one & other) / union if union else 0.0


def near_duplicates(
    texts: Mapping[str, str], threshold: float, golds: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Key of each text that is nearly another -> key of that other, the first of its kind by key.

    Two of different ``golds`` are never one ("": not known). Candidates by MinHash (rensa), each proved by the Jaccard
    similarity of its shingles of ``exact_words``; from ``threshold`` 1 on, equal ones alone. The result does not depend
    on the order of ``texts``. Raises UsageError where rensa is not installed and ``threshold`` is below 1.
    """
    gold = {key: "" if golds is None else golds[key] for key in texts}
    keys = sorted(texts)
    if threshold >= 1.0:
        return _equal(texts, keys, gold)
    try:
        from rensa import RMinHash, RMinHashLSH
    except ImportError as error:
        raise UsageError(
            "near_duplicate needs rensa, which is not installed: pip install 'rlreason[train]', or say "
            "near_duplicate = 1 to find equal problems only"
        ) from error
    bands = 32
    index = RMinHashLSH(threshold, MINIMA, bands)
    found = {}
    for number, key in enumerate(keys):
        own = grams(exact_words(texts[key]), SHINGLE)
        if not own:
            continue
        minima = RMinHash(num_perm=MINIMA, seed=0)
        minima.update([" ".join(one) for one in own])
        close = (keys[at] for at in sorted(map(int, index.query(minima))))
        alike = (other for other in close if may_be_one(gold[key], gold[other]))
        same = next((one for one in alike if jaccard(own, grams(exact_words(texts[one]), SHINGLE)) >= threshold), None)
        if same is not None:
            found[key] = same
        else:
            index.insert(number, minima)
    return found


def _equal(texts: Mapping[str, str], keys: Sequence[str], gold: Mapping[str, str]) -> dict[str, str]:
    first: dict[str, list[str]] = {}
    found = {}
    for key in keys:
        own = exact(texts[key])
        alike = first.setdefault(own, [])
        same = next((other for other in alike if may_be_one(gold[key], gold[other])), None)
        if own and same is not None:
            found[key] = same
        else:
            alike.append(key)
    return found


def may_be_one(gold: str, other: str) -> bool:
    """Whether two problems may be one by their gold answers: equal ones, or one that is not known ("")."""
    return gold == other or not gold or not other


class Benchmarks:
    """Questions of benchmarks, by the words in a row that they hold."""

    def __init__(self, questions: Mapping[str, Iterable[str]], n: int) -> None:
        """``questions``: by the benchmark's name."""
        self.n = n
        self.sizes: dict[str, int] = {}
        self._grams: dict[tuple[str, ...], str] = {}
        for name, texts in questions.items():
            count = 0
            for text in texts:
                count += 1
                for one in grams(normal_words(text), n):
                    self._grams.setdefault(one, name)
            self.sizes[name] = count

    @staticmethod
    def read(paths: Sequence[str], n: int, base: Path) -> Benchmarks:
        """Of JSONL files, each named by its stem, or where several have one by as much of its path as tells it apart.

        Raises UsageError for one that can't be read or has no question.
        """
        files = list(dict.fromkeys(base / given for given in paths))
        return Benchmarks({name: _questions(path) for name, path in _named(files).items()}, n)

    def hit(self, text: str) -> str | None:
        """The benchmark that ``text`` shares words in a row with; None: none of them."""
        for one in grams(normal_words(text), self.n):
            if one in self._grams:
                return self._grams[one]
        return None


def _named(files: Sequence[Path]) -> dict[str, Path]:
    """Files by names of which no two are equal: the stem, else the shortest end of the path that no other file has."""
    stems = Counter(path.stem for path in files)
    found = {}
    for path in files:
        name = path.stem
        if stems[name] > 1:
            others = [other.parts for other in files if other != path]
            ends = (path.parts[-count:] for count in range(2, len(path.parts) + 1))
            own = (end for end in ends if not any(other[-len(end) :] == end for other in others))
            name = "/".join(next(own, path.parts))
        found[name] = path
    return found


def _questions(path: Path) -> list[str]:
    """The questions of a JSONL file; blank lines are none. Raises UsageError naming file and line."""
    found, number = [], 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                key = next((one for one in _COLUMNS if one in row), None) if isinstance(row, dict) else None
                if key is None:
                    raise UsageError(
                        f"decontaminate.against: {path}, line {number}: no {', '.join(_COLUMNS)}: give each row of the "
                        "benchmark its question under one of these names"
                    )
                found.append(str(row[key]))
    except OSError as error:
        raise UsageError(f"decontaminate.against: {path} can't be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(
            f"decontaminate.against: {path} is no file of JSON lines (line {number or 1}: {error})"
        ) from error
    if not found:
        raise UsageError(f"decontaminate.against: {path} holds no question: name a file that has some, or leave it out")
    return found
