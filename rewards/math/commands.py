"""LaTeX commands and plain words that the tokeniser drops, reads as text, or writes another way."""

from __future__ import annotations

from rlreason.rewards.math.words import word_set

DROPPED = word_set(
    r"\left \right \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \biggl \biggr \displaystyle \textstyle \scriptstyle "
    r"\limits \nolimits \middle \mathstrut \nonumber \notag \hfill \small \large \Large \normalsize \bf \rm \it "
    r"\boldmath \mathord \mathop \mathbin \mathopen \mathclose \protect \relax \allowbreak \underline \boxed \fbox "
    r"\mathbf \mathit \mathcal \bm \boldsymbol \mathsf \mathfrak \mathscr \vec \overrightarrow \pmb \mathnormal "
    r"\ensuremath \tag \angle \triangle \qquad \quad"
)
DROPPED_WITH_ARGUMENT = frozenset(
    {"\\hspace", "\\vspace", "\\phantom", "\\hphantom", "\\vphantom", "\\label", "\\mspace", "\\color", "\\textcolor"}
)
TEXT = frozenset(
    {"\\text", "\\textbf", "\\textrm", "\\textit", "\\mbox", "\\mathrm", "\\textnormal", "\\texttt", "\\operatorname"}
    | {"\\operatorname*", "\\textsf", "\\hbox", "\\emph", "\\mathtt", "\\textup", "\\textsc", "\\unit", "\\si"}
)
SAME = {
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\nicefrac": "\\frac", "\\sfrac": "\\frac",
    "\\dbinom": "\\binom", "\\tbinom": "\\binom", "\\varnothing": "\\emptyset", "\\choose": "\\choose",
    "\\land": "and", "\\lor": "or", "\\wedge": "and", "\\vee": "or", "\\iff": "or", "\\lbrace": "{", "\\rbrace": "}",
    "\\lbrack": "[", "\\rbrack": "]", "\\langle": "(", "\\rangle": ")", "\\lvert": "|", "\\rvert": "|", "\\vert": "|",
    "\\mid": "|", "\\lVert": "|", "\\rVert": "|", "\\Vert": "|", "\\times": "*", "\\cdot": "*", "\\ast": "*",
    "\\div": "/", "\\colon": ":", "\\backslash": "\\setminus", "\\degree": "deg", "\\degrees": "deg",
    "\\prime": "'", "\\infin": "\\infty", "\\bigcup": "\\cup", "\\bigcap": "\\cap", "\\ldots": "...", "\\dots": "...",
    "\\cdots": "...", "\\dotsc": "...", "\\lfloor": "\\lfloor", "\\overline": "\\overline", "\\bar": "\\overline",
    "\\varphi": "\\phi", "\\vartheta": "\\theta", "\\varepsilon": "\\epsilon", "\\euro": "€", "\\pounds": "£",
    "\\Re": "\\Re", "\\Im": "\\Im", "\\percent": "%", "\\dollar": "$", "\\lnot": "\\neg", "\\ltimes": "*",
}  # fmt: skip
WORDS = {
    "and": ("sep", "and"), "or": ("sep", "or"), "pi": ("cmd", "\\pi"), "infinity": ("cmd", "\\infty"),
    "inf": ("cmd", "\\infty"), "infty": ("cmd", "\\infty"), "oo": ("cmd", "\\infty"), "percent": ("op", "%"),
    "pct": ("op", "%"), "percentage": ("op", "%"), "degrees": ("op", "deg"), "degree": ("op", "deg"),
    "deg": ("op", "deg"), "to": ("op", ":"), "in": ("rel", "in"), "union": ("cmd", "\\cup"), "U": ("id", "U"),
    "cup": ("cmd", "\\cup"), "pm": ("cmd", "\\pm"),
    "sqrt": ("cmd", "\\sqrt"), "frac": ("cmd", "\\frac"),
    "binom": ("cmd", "\\binom"), "binomial": ("cmd", "\\binom"), "emptyset": ("cmd", "\\emptyset"),
    "factorial": ("fn", "factorial"),
    "Abs": ("fn", "abs"),
    "Interval": ("fn", "Interval"),
    "FiniteSet": ("fn", "FiniteSet"),
    "Union": ("fn", "Union"),
    "Matrix": ("fn", "Matrix"), "Eq": ("fn", "Eq"), "Rational": ("fn", "Rational"), "times": ("op", "*"),
    "squared": ("text", "squared"),
}  # fmt: skip
