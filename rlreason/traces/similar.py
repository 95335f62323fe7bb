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
    """Words without case, spacing, punctuation and LaTeX's dress: ``\\dfrac{1}{2}`` and ``\\frac12`` stay apart."""
    plain = unicodedata.normalize("NFKC", _NOISE.sub(" ", text)).lower().replace("\\dfrac", "\\frac")
    return _WORD.findall(plain.replace("\\tfrac", "\\frac"))


def normal(text: str) -> str:
    """The same as one text."""
    return " ".join(normal_words(text))


def grams(words: Sequence[str], n: int) -> set[tuple[str, ...]]:
    """All n words in a row; a shorter text as a whole."""
    if len(words) < n:
        return {tuple(words)} if words else set()
    return {tuple(words[at : at + n]) for at in range(len(words) - n + 1)}


def jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    """Shared shingles among all; 0 of two empty texts."""
    union = len(one | other)
    return len(one & other) / union if union else 0.0


def near_duplicates(texts: Mapping[str, str], threshold: float) -> dict[str, str]:
    """Key of each text that is nearly another -> key of that other, the first of its kind by key.

    Candidates by MinHash (rensa), each proved by the Jaccard similarity of its shingles. The result does not depend on
    the order of ``texts``. Raises UsageError where rensa is not installed and ``threshold`` is below 1.
    """
    shingles = {key: grams(normal_words(texts[key]), SHINGLE) for key in sorted(texts)}
    if threshold >= 1.0:
        first: dict[frozenset[tuple[str, ...]], str] = {}
        found = {key: first.setdefault(frozenset(own), key) for key, own in shingles.items() if own}
        return {key: other for key, other in found.items() if key != other}
    try:
        from rensa import RMinHash, RMinHashLSH
    except ImportError as error:
        raise UsageError(
            "near_duplicate needs rensa, which is not installed: pip install 'rlreason[train]', or say "
            "near_duplicate = 1 to find equal problems only"
        ) from error
    bands = 32
    index = RMinHashLSH(threshold, MINIMA, bands)
    keys = list(shingles)
    found = {}
    for number, key in enumerate(keys):
        if not shingles[key]:
            continue
        minima = RMinHash(num_perm=MINIMA, seed=0)
        minima.update([" ".join(one) for one in shingles[key]])
        close = sorted(int(other) for other in index.query(minima))
        same = next((at for at in close if jaccard(shingles[key], shingles[keys[at]]) >= threshold), None)
        if same is not None:
            found[key] = keys[same]
        else:
            index.insert(number, minima)
    return found


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
