"""Generated blocks of the documents: what a benchmark measured, written where it is explained."""

import re
from pathlib import Path


def replace_block(document: Path, name: str, text: str) -> None:
    """Put ``text`` between ``<!-- name -->`` and ``<!-- /name -->``."""
    old = document.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    new, count = pattern.subn(lambda m: m[1] + text.rstrip() + "\n" + m[2], old)
    if count != 1:
        raise SystemExit(f"{document}: expected one block {name!r}, found {count}")
    document.write_text(new, encoding="utf-8")
