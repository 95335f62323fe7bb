"""The words of prose around an answer: what concludes, what changes a number, what only says why, what denies."""

from __future__ import annotations

import re

from rlreason.rewards.math.words import word_set

SPAN = re.compile(r"\$\$([^$]{1,2000})\$\$|\$([^$]{1,1000})\$|\\\[(.{1,2000}?)\\\]|\\\((.{1,1000}?)\\\)", re.DOTALL)
#: A word after which a sentence says what something is.
COPULA = re.compile(
    r"(?:\b(?:is|are|was|were|equals?|be|it['’]s|becomes|gives|get|obtain|find|have|est(?: donc)?(?: de)?|ist|es|è|são"
    r"|é)\b|(?<!\d)(?<!\d )[:：]|[是为為は]|هو|हैं)\s*",
    re.IGNORECASE,
)
#: What follows only says why.
BECAUSE = re.compile(
    r"\s*(?:[,;(]\s*)?\b(?:because|since|as (?:it|he|she|they|we|there|this|that|the|claimed|required|expected|desired"
    r"|asked|requested|shown|stated|above)|due to|which|where|when(?![^.]{0,80}[<>≤≥≠]|\s.{0,40}\b(?:even|odd|prime"
    r"|positive|negative|integers?)\b)|after|for the|so that|i\.e\.)(?![\w]).*",
    re.DOTALL | re.IGNORECASE,
)
#: "…, which fails": what follows takes the answer back.
TAKEN_BACK = re.compile(
    r"\d\s+(?:once|after|before|when)\s+(?:doubl|halv|tripl|squar|multipl|divid|negat)(?:ed|ing)\b"
    r"|\bwhich\b.{0,60}\b(?:wrong|incorrect|false|impossible|invalid|absurd|fails?|contradict\w*|too (?:large"
    r"|small|big|many|few)"
    r"|not (?:right|correct|possible|allowed|valid|what|the answer|an? (?:answer|solution|integer|option)))\b",
    re.DOTALL | re.IGNORECASE,
)
AFTERTHOUGHT = re.compile(r"\s*,\s*(?:so|and not|not)\b.*", re.DOTALL | re.IGNORECASE)
#: Words that bound, change or deny the number beside them, or leave it open. No number of such a phrase is its answer.
_CHANGES = word_set(
    "not never no cannot nor neither between either or wrong incorrect false unless without except excluding unlikely "
    "impossible doubtful instead rather maybe perhaps possibly might could if whether than least most over under "
    "above below beyond exceed exceeds exceeding within greater smaller larger bigger higher lower twice thrice "
    "double triple half third quarter squared cubed factorial hundred hundreds thousand thousands million billion "
    "trillion dozen dozens score lakh crore tenth tenths hundredth hundredths thousandth thousandths thirds fourths "
    "fifths sixths eighths halves quarters percentage reciprocal inverse opposite multiple but power plus minus "
    "multiplied divided modulo rejected invalid extraneous discarded unknown undetermined pas ni ou plus moins nicht "
    "kein keine oder mehr weniger nunca ninguno menos más mais não non né meno più нет не или больше меньше"
)
_CHANGING_SIGNS = re.compile(
    r"n['’]t\b|[不非没未]|或|以上|以下|超过|大于|小于|至少|至多|[两二三]倍|[0-9]\s*倍|平方|立方|几|错"
)
#: Words of a sentence that is under way: it tries, supposes or announces, and concludes nothing.
UNDER_WAY = re.compile(
    r"\b(?:let(?:['’]?s| us| me)?|suppose|supposing|consider(?:ing|ed)?|assum(?:e|ed|ing|ption)|check(?:ed|ing|s)?"
    r"|verify|tr(?:y|ied|ying)|guess(?:ed)?|(?:so|thus) far|to be continued|need to|must show|prove|compute|calculate"
    r"|note that|recall|we now|now we|we will|will now|imagine|maybe|perhaps|plug(?:ging)?|substitut(?:e|ing)"
    r"|attempt(?:ed|s)?|unsure|confused|stuck|give up|don['’]t know|not sure|for example|angenommen|sei|supposons|soit"
    r"|supongamos|sea(?= [a-z] ?=))\b|^\W*(?:first|next|given|when|for|with)\b|\bremaining (?:cases?|steps?|possibilit"
    r"|values?|options?)|(?<!number of )\bcases? (?:are|is|left|remain)|\b(?:problem|question|exercise|equation|case"
    r"|step|page|line|chapter|figure|part|method|round|attempt)s?[\s(]*\d|\b(?:case|step)\s+[a-z]\s*="
    r"|假设|假如|如果|设|考虑|检查|验证|首先|接下来|第\s*\d+\s*步|предположим|пусть|[?？]\s*$",
    re.IGNORECASE,
)
#: Words of an inventory of what is still to be done; a sentence with a concluding word may speak of them.
UNDONE = re.compile(
    r"(?<!\\)\b(?:cases?|steps?|pages?|more|left|remain(?:s|ing)?|possibilit(?:y|ies)|options?)\b", re.IGNORECASE
)
#: Words with which a sentence concludes.
SO = re.compile(
    r"\b(?:therefore|thus|hence|so(?! (?:far|that|many|much|long|called))|consequently|finally|in conclusion"
    r"|to conclude|we conclude|overall|in summary|accordingly|it follows|donc|ainsi|alors|en conclusion|par conséquent"
    r"|also (?:ist|sind|gilt|folgt|beträgt|haben)|daher|somit|folglich|por (?:lo )?tanto|portanto|entonces|así que"
    r"|quindi|dunque|pertanto|итак|следовательно|значит|поэтому|vậy|jadi|dus|zatem)\b|\\therefore|∴|\\(?:implies"
    r"|Rightarrow)|⇒|因此|所以|故|综上|从而|于是|可得|结论|よって|したがって|ゆえに|따라서|그러므로"
    r"|इसलिए|अतः|لذا|إذن|وبالتالي",
    re.IGNORECASE,
)
TOTAL = re.compile(r"\b(?:total|altogether|in all|au total|insgesamt|всего)\b|一共|总共|共有", re.IGNORECASE)
LEAD = re.compile(
    r"(?:\s|[,:;]|\b(?:therefore|thus(?! far)|hence|so(?! far)|then|finally|consequently|accordingly|in conclusion"
    r"|overall|indeed|clearly|simply|exactly|precisely|just|only|equal to|given by|found to be|approximately|about"
    r"|roughly|around|nearly|for sure|definitely|certainly|of course|surely|actually|really|that|donc|also(?= ist"
    r"| sind| gilt)|daher|somit|entonces|here|we get|we have|(?:the |a |an )?(?:number|integer|value|fraction|set"
    r"|interval|point|matrix|vector|pair|ordered pair|tuple|equation|expression|function|ratio|sum"
    r"|total)(?= *[\d$\\({\[-]))(?![A-Za-z])"
    r"|\\therefore|\\Rightarrow|\\implies|∴|⇒|因此|所以|故)+",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_DECORATION = re.compile(
    r"</?[A-Za-z][^<>\n]{0,60}>|<<[^<>\n]{0,80}>>|\$?\s*\\(?:blacksquare|square|qed|Box|hfill)\b\s*\$?|[■□∎✓✔✅☑]"
    r"|\bQ\.?E\.?D\.?(?!\w)|[\U0001F300-\U0001FAFF]"
)


def changes(text: str) -> bool:
    """Does a word in it bound, change or deny what stands beside it?"""
    if alters(text):
        return True
    words = {w.lower() for w in _WORD.findall(text)}
    return bool(words & _CHANGES) or bool(_CHANGING_SIGNS.search(text)) or bool(_PRODUCT.search(text))


def alters(label: str) -> bool:
    """Do words behind a number make another of it, or bind it to a condition: "halved", "point five", "if x > 0"?"""
    return bool(_ALTERED.match(label) or _CONDITION.search(label))


_ALTERED = re.compile(
    r"\W*(?:(?:off|behind|ahead|short|something|somethings|odd|ish|negative|negated|doubled|halved|tripled|quadrupled"
    r"|squared off|inverted|some|split in (?:two|half)|cut in half|upside down|backwards|reversed|and change"
    r"|and counting|and a bit|or so|give or take)\W*(?:$|[.,;(])"
    r"|in the (?:red|hole|negative)\b|(?:below|under) zero\b|(?:orders?|powers?) of\b|point (?:\w+)\W*$"
    r"|too (?:many|few|much|little)\b|by mistake\b|(?:erroneously|mistakenly)\b|in (?:hex|binary|octal|base)\w*"
    r"|(?:percent|%) (?:less|more|off)\b|for\b.* only\W*$|less (?:the |any |all )?(?:tax|taxes|fees?|costs?|what"
    r"|that|than|one|two|\d)|times (?:as|that|the|what|more|less"
    r"|larger|smaller|bigger|one|two|three|four|five|six|seven|eight|nine|ten|itself|\d)\b|to the power\b"
    r"|(?:raised|rounded up|increased|decreased|reduced) (?:to|by)\b)",
    re.IGNORECASE,
)
_CONDITION = re.compile(
    r"\b(?:assuming|provided|providing|supposing|given (?:that|[a-z]\b)|conditional on|as long as|whenever"
    r"|only (?:if|when)|subject to)\b"
    r"|\bwhen\b(?:.{0,80}[<>≤≥≠]|.{0,40}\b(?:even|odd|prime|positive|negative|integers?)\b)",
    re.IGNORECASE,
)
#: "5 times 6", "three times as many", "the square root of 5"; "3 times a week" and "5 square meters" count.
_PRODUCT = re.compile(
    r"\btimes\b\s*(?:[\d$\\]|as\b|the\b|that\b|larger|smaller|bigger)|\b(?:square|cube)s?\s+(?:of|root)|\broots?\s+of",
    re.IGNORECASE,
)
#: A number that a sentence turns down: "rule out 5", "5 fails", "5 is too large".
TURNED_DOWN = re.compile(
    r"\b(?:rul(?:e|es|ed|ing) out|we (?:divide|multiply|add|subtract|take|use|start)|reject\w*|exclud\w*|eliminat\w*"
    r"|discard\w*|disregard\w*|ignor\w*|drop(?:ped)?|fail\w*|contradict\w*|violat\w*|too (?:large|small|big|many|few"
    r"|much|high|low|long|short)|other than|rather than|instead of|(?:factor|divisor|multiple|fraction|part|one|half"
    r"|some|any|digit|digits|power|root) of|next to|out of"
    r"|close to|near)\b",
    re.IGNORECASE,
)


def undecorated(text: str) -> str:
    """``text`` without HTML tags, signs that end a proof, and pictures."""
    text = _DECORATION.sub(" ", text) if _DECORATION.search(text) else text
    if "$" in text and _MONEY.fullmatch(text):
        return _MONEY_SIGN.sub("", text)
    return text


#: Text in which every dollar sign stands before a number: amounts, no formulas.
_MONEY = re.compile(r"[^$]*(?:(?<!\\)\$\s?[-−]?[\d.][^$]*){2,}")
_MONEY_SIGN = re.compile(r"\$\s?(?=[-−]?[\d.])")


def denied(text: str) -> bool:
    """Is there a word of denial or doubt in it?"""
    return bool(_DENIAL.search(text))


def denied_at_once(before: str) -> bool:
    """Does a sentence deny or doubt the value that its next word would state: "it cannot", "I doubt that x"?

    "The probability that it does not rain is" denies nothing of its value."""
    return bool(_AT_ONCE.search(before[-40:]) or DENIED_CLAUSE.search(before))


_AT_ONCE = re.compile(
    r"(?:\b(?:not|never|cannot|could|might|may|hardly|pas|nicht|nunca|não|non|no|не)(?: also| really| well| just)?"
    r"|n['’]t|不)"
    r"\s*$",
    re.IGNORECASE,
)
#: A clause that is denied, doubted or supposed as a whole.
DENIED_CLAUSE = re.compile(
    r"(?:\bnot|n['’]t|\bnever|\bcannot)\s+(?:that|true|the case|because|mean|know|think|believe|sure|certain|clear|say"
    r"|claim|imply|follow|conclude|possible|correct|right|enough)\b|\b(?:if|unless|whether|either|neither|none|nothing"
    r"|doubt\w*|unlikely|impossible|false|wrong\w*|incorrect\w*|depends"
    r"|rejected|extraneous|invalid|discarded)\b",
    re.IGNORECASE,
)
_DENIAL = re.compile(
    r"\b(?:not|never|cannot|nor|neither|unlikely|impossible|wrong|incorrect|false|doubtful|whether|depends|rejected"
    r"|extraneous|invalid|discarded|unless|if|either|pas|nicht|kein"
    r"|nunca|não|non|нет|не)\b|\bno (?:es|son|è|é|is)\b|n['’]t\b|不|错",
    re.IGNORECASE,
)
