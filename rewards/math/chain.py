"""Equations over several lines as one: ``x = 6\\cdot 7 = 42``."""

from __future__ import annotations

import re

_ALIGNED = re.compile(
    r"\s*\$*\s*\\begin\{(?P<name>aligned|align\*?|alignedat|gathered|split|eqnarray\*?|equation\*?)\}(?P<body>.*)"
    r"\\end\{(?P=name)\}\s*\$*\s*[.]?\s*",
    re.DOTALL,
)


def chain(content: str) -> str:
    """``x = 6\\cdot 7 = 42`` of an ``aligned`` of that; separate equations in it become a list."""
    found = _ALIGNED.fullmatch(content)
    if found is None or "\\begin" in found["body"]:
        return content
    lines = [line.replace("&", " ").strip(" \n.,;$") for line in found["body"].split("\\\\")]
    lines = [re.sub(r"^\[[^\]]*\]|\\(?:tag|label)\{[^{}]*\}|\\nonumber", "", line).strip() for line in lines]
    out = ""
    for line in filter(None, lines):
        goes_on = line.startswith(("=", "\\approx", "\\Rightarrow", "\\implies"))
        if line.startswith(("\\Rightarrow", "\\implies")):
            out = re.sub(r"^\\(?:Rightarrow|implies)\s*", "", line)
        else:
            out = f"{out} {line}" if goes_on or not out else f"{out}, {line}"
    return out.strip()
