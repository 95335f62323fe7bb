"""Is a suite's problem among those that are trained on: word for word, in other LaTeX, inside of another text, or with
other numbers?

What is found is text that is alike. A paraphrase or a translation is not found by any of this.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

#: Words of an n-gram: DeepSeek-R1's decontamination takes 10 (arXiv 2501.12948, appendix B).
NGRAM = 10
#: Share of a problem's n-grams that one training text has, from which on it holds the problem.
HOLDS = 0.5
#: Likewise with every number masked, where more than a template must be alike.
HOLDS_MASKED = 0.9
#: Fewest words, numbers not counted, of a problem that is looked for with its numbers masked.
FEWEST_WORDS = 12


class Kind(StrEnum):
    """How alike two questions are, the surest first.

    EXACT       the same but for case and white space
    LATEX       the same as mathematics is written: \\dfrac for \\frac, $ for \\(, spacing commands, braces
    NGRAM       half of the question's 10-grams stand in one training text
    RENUMBERED  the same with other numbers
    """

    EXACT = "exact"
    LATEX = "latex"
    NGRAM = "ngram"
    RENUMBERED = "renumbered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One problem of a suite that is trained on.

    Example: ``Match(problem="aime24-I-01", kind=Kind.LATEX, row="train-17", share=1.0)``.
    """

    #: Id of the suite's problem.
    problem: str
    kind: Kind
    #: Id of the training problem that is most like it.
    row: str
    #: Share of the problem's n-grams that the training text has; 1 of what is alike as a whole.
    share: float


_SPACING = re.compile(r"\\(?:left|right|displaystyle|limits|quad|qquad|[,;:! ])|~|&nbsp;")
_WRAPPER = re.compile(r"\\(?:text|mathrm|mathbf|textbf|textit|operatorname|mbox)\s*\{([^{}]*)\}")
_SAME = (
    (re.compile(r"\\[dtc]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\(?:cdot|times)(?![a-z])|[×·]"), "*"),
    (re.compile(r"\\leq?(?:slant)?(?![a-z])"), "<="),
    (re.compile(r"\\geq?(?:slant)?(?![a-z])"), ">="),
    (re.compile(r"\\(?:l?dots|cdots)(?![a-z])|…"), "..."),
    (re.compile(r"\\[()\[\]]|\$|[{}]|\\"), " "),
)
_TOKEN = re.compile(r"[^\W\d_]+|\d+(?:[.,]\d+)*|[^\s\w]|_")
_PUNCTUATION = frozenset(".,;:!?'\"’‘“”`()-–—*_")
_NUMBER = re.compile(r"\d")


def words_of(text: str) -> list[str]:
    """The words, numbers and signs of a question, whatever its case, spacing, punctuation and dialect of LaTeX."""
    text = _SPACING.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    text = _WRAPPER.sub(r" \1 ", text)
    for pattern, plain in _SAME:
        text = pattern.sub(plain, text)
    return [token for token in _TOKEN.findall(text) if token not in _PUNCTUATION]


class Index:
    """The problems of a suite, by everything that a training text may have in common with them.

    Example: ``Index({"p1": "What is 2+2?"}).matches([("row-1", "what is  2 + 2 ?")])``.
    """

    def __init__(self, problems: Mapping[str, str]) -> None:
        """``problems``: id -> question."""
        self._exact: dict[str, list[str]] = defaultdict(list)
        self._written: dict[str, list[str]] = defaultdict(list)
        self._grams: dict[tuple[str, ...], list[str]] = defaultdict(list)
        self._masked: dict[tuple[str, ...], list[str]] = defaultdict(list)
        self._sizes: dict[str, int] = {}
        for name, text in problems.items():
            words = words_of(text)
            self._exact[_plain(text)].append(name)
            self._written["".join(words)].append(name)
            grams = set(_grams(words))
            self._sizes[name] = len(grams)
            for gram in grams:
                self._grams[gram].append(name)
            if sum(word.isalpha() for word in words) >= FEWEST_WORDS:
                for gram in set(_grams(_mask(words))):
                    self._masked[gram].append(name)
        self._masked_sizes = Counter(name for names in self._masked.values() for name in names)

    def matches(self, rows: Iterable[tuple[str, str]]) -> list[Match]:
        """The problems that ``rows``, (id, text) of what is trained on, have in common; of each the surest match."""
        best: dict[str, Match] = {}
        order = list(Kind)
        for row, text in rows:
            for match in self._of(row, text):
                known = best.get(match.problem)
                if known is None or (order.index(match.kind), -match.share) < (order.index(known.kind), -known.share):
                    best[match.problem] = match
        return [best[name] for name in self._sizes if name in best]

    def _of(self, row: str, text: str) -> Iterator[Match]:
        words = words_of(text)
        for name in self._exact.get(_plain(text), ()):
            yield Match(problem=name, kind=Kind.EXACT, row=row, share=1.0)
        for name in self._written.get("".join(words), ()):
            yield Match(problem=name, kind=Kind.LATEX, row=row, share=1.0)
        for kind, index, sizes, gate, tokens in (
            (Kind.NGRAM, self._grams, self._sizes, HOLDS, words),
            (Kind.RENUMBERED, self._masked, self._masked_sizes, HOLDS_MASKED, _mask(words)),
        ):
            found = Counter(name for gram in set(_grams(tokens)) for name in index.get(gram, ()))
            for name, count in found.items():
                if count >= gate * sizes[name]:
                    yield Match(problem=name, kind=kind, row=row, share=count / sizes[name])


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _mask(words: list[str]) -> list[str]:
    return ["#" if _NUMBER.match(word) else word for word in words]


def _grams(words: list[str]) -> Iterator[tuple[str, ...]]:
    """Every run of ten words; of a shorter text none: it is only ever found as a whole."""
    return (tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1))
