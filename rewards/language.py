"""``language``: is the chain of thought in the asked language?"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from rlreason.errors import suggest
from rlreason.rewards.registry import reward
from rlreason.types import Completion, Problem

#: Commonest words of languages written in Latin letters: they tell one from another.
_STOPWORDS = {
    "en": "the of and to is in that for it we so then this with are be have can by from which as not if let now",
    "fr": "le la les des et est une un pour que dans qui donc nous avec sur pas alors ce cette sont soit ou",
    "de": "der die das und ist ein eine zu den mit für wir nicht von also auf sich dann auch werden dass dem",
    "es": "el la los las de y es una un para que en por con entonces se del como esta son ser si",
    "it": "il lo gli di e è una un per che con sono quindi si della nel alla come questo essere non",
    "pt": "o os as de e é uma um para que com não então por se da do em como esta são ser",
    "nl": "de het een en van is dat voor we niet met dus zijn op als dan te er ook worden",
    "vi": "là và của các cho một có được không với trong này thì ta để những khi",
    "tr": "ve bir bu için ile olarak olan da de değil ne kadar sonra ise",
    "pl": "i w na z jest to że się nie do jak dla oraz więc który",
    "id": "dan yang di dengan untuk dari adalah ini itu pada kita maka akan tidak",
}
_STOP = {language: frozenset(text.split()) for language, text in _STOPWORDS.items()}
#: Unicode scripts (first word of the character name) of languages that are told by their letters.
_SCRIPTS = {
    "zh": {"CJK"},
    "ja": {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"},
    "ko": {"HANGUL"},
    "ru": {"CYRILLIC"},
    "uk": {"CYRILLIC"},
    "el": {"GREEK"},
    "ar": {"ARABIC"},
    "fa": {"ARABIC"},
    "he": {"HEBREW"},
    "hi": {"DEVANAGARI"},
    "bn": {"BENGALI"},
    "ta": {"TAMIL"},
    "te": {"TELUGU"},
    "th": {"THAI"},
}
_UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "THAI"}
# Mathematics and code are in no language.
_NOT_PROSE = re.compile(
    r"```.*?(?:```|\Z)|\$\$.*?\$\$|\$[^$\n]{0,400}\$|\\\[.*?\\\]|\\\(.*?\\\)|</?\w{1,20}>|\\[A-Za-z]+", re.DOTALL
)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+")


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0]


def words(text: str) -> list[str]:
    """Words in lower case; each character of an unspaced script counts as one."""
    out: list[str] = []
    for word in _WORD.findall(text.lower()):
        out.extend(word if _script(word[0]) in _UNSPACED else (word,))
    return out


def thought_of(response: str) -> str:
    """Text between ``<think>`` and ``</think>``; the whole response where the tags are missing."""
    before, found, _ = response.partition("</think>")
    text = before if found else response
    return text.rpartition("<think>")[2]


@reward("language")
def language(problem: Problem, completion: Completion, *, target: str = "en") -> float:
    """Share of target-language words in the chain of thought (DeepSeek-R1, arXiv 2501.12948, section 2.3.2).

    A word is a run of letters of two or more (one character in unspaced scripts), outside mathematics and code.
    A target with a script of its own (zh, ja, ko, ru, …): words in that script count. A target in Latin letters:
    Latin words count in proportion to the target's share of the telling stopwords, if the text has at least five.
    1.0 where there are no words.
    """
    if target not in _SCRIPTS and target not in _STOP:
        raise ValueError(f"language: unknown target {target!r}: {suggest(target, (*_SCRIPTS, *_STOP))}")
    text = _NOT_PROSE.sub(" ", thought_of(completion.response))
    counted = [w for w in words(text) if not w.isdigit() and (len(w) > 1 or _script(w) in _UNSPACED)]
    if not counted:
        return 1.0
    if target in _SCRIPTS:
        return sum(_script(w[0]) in _SCRIPTS[target] for w in counted) / len(counted)
    latin = [w for w in counted if _script(w[0]) == "LATIN"]
    hits = {name: sum(w in stop for w in latin) for name, stop in _STOP.items()}
    best = max(hits.values())
    factor = hits[target] / best if best >= 5 else 1.0
    return factor * len(latin) / len(counted)
