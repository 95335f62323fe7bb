"""Which program a response proposes: the last fenced block after the thought. One pass over the lines."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

#: Fence tags that mean a language; any other language is known by its own name only.
_ALIASES = {"python": re.compile(r"(?:i?python|py|pypy|cpython|py-?thon)[\d.]*|pycon")}
#: Tags that name no language.
_BARE = frozenset({"", "code", "program", "solution"})
#: Marks that some models put around a program in place of fences.
_MARKS = (("[PYTHON]", "[/PYTHON]"), ("[BEGIN]", "[DONE]"))
#: What a bare answer that is meant as a program holds.
_SIGNS = ("def ", "class ", "import ", "print(", "return ", "=", "for ", "while ")
_FENCES = "`~"
#: What may follow a closing fence at once: </answer>, <|im_end|>.
_AFTER = ("</", "<|")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block. Example: ``Block(start=9, tag="python", indent=0, code="print(1)")``; ``tag`` "" where bare.

    ``start`` and ``end`` are positions in the text, fences included; ``indent`` counts columns before the fence.
    """

    start: int
    end: int
    tag: str
    indent: int
    code: str


@dataclass(frozen=True, slots=True)
class _Fence:
    """The run of ``` or ~~~ that opens a block."""

    char: str
    length: int
    column: int
    indent: int
    tag: str


def extract_program(response: str, *, language: str = "python", whole_text: bool = False) -> str | None:
    """The last program in ``language`` after the last ``</think>``, or None where there is none.

    - Blocks tagged with the language come before untagged ones (which often hold sample output); blocks of other
      languages are skipped, and so are sessions of an interpreter (``>>> f(1)``) tagged ``pycon``. The last block is
      not closed in a response that was cut off: it runs to the end.
    - A last ``<answer>`` decides, unless a block follows it; its content may be fenced or bare. A sentence is no
      program: the block before it counts.
    - Without a block: ``[PYTHON]`` … ``[/PYTHON]``, ``[BEGIN]`` … ``[DONE]``, or a program that ends with a lone fence.
    - ``whole_text``: a response without a block is a program as it stands. Fences inside it that are indented (in a
      docstring) are then no blocks.
    - A ``<think>`` that is never closed has no answer after it. Tags inside a block are program text.
    """
    _, _, text = response.replace("\r\n", "\n").rpartition("</think>")
    text = _unquoted(text)
    found = [block for block in blocks(text) if block.tag != "pycon" or not block.code.lstrip().startswith(">>>")]
    if whole_text:
        found = [block for block in found if block.indent == 0]
    prose = _without(text, found)
    if "<think>" in prose:
        return None
    tagged = [block for block in found if _is_language(block.tag, language)]
    bare = [block for block in found if block.tag in _BARE]
    answer = _answer(prose)
    if answer is not None and not any(block.start >= answer[1] for block in tagged + bare):
        start, end = answer
        inside = [block for block in found if start <= block.start < end]
        if not inside and not (tagged and _is_prose(text[start:end])):
            return _program(text[start:end])
        if inside:
            tagged = [block for block in tagged if block in inside]
            bare = [block for block in bare if block in inside]
            found = inside
    usable = tagged or bare
    if usable:
        code = _program(usable[-1].code)
        return code if code is not None or len(found) > 1 else _before(text, usable[-1].start)
    marked = _marked(prose) if not found else None
    if marked is not None:
        return _program(marked)
    return _program(text) if whole_text and not found else None


def _is_language(tag: str, language: str) -> bool:
    """Whether ``python:main.py`` and the like mean ``language``."""
    name = re.split("[:|,]", tag, maxsplit=1)[0]
    return _ALIASES[language].fullmatch(name) is not None if language in _ALIASES else name == language


def _parses(text: str) -> bool:
    try:
        return bool(ast.parse(text).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_prose(text: str) -> bool:
    """``The code above solves it.``"""
    return bool(text.strip()) and not any(sign in text for sign in _SIGNS)


def _before(text: str, end: int) -> str | None:
    """A program whose fence was only closed: all that stands before, if that is one."""
    program = _program(text[:end])
    return program if program is not None and _parses(program) and not _is_prose(program) else None


def _marked(prose: str) -> str | None:
    """What stands between the last marks of a kind; to the end where they are not closed."""
    for opening, closing in _MARKS:
        start = prose.rfind(opening)
        if start >= 0:
            return prose[start + len(opening) :].partition(closing)[0]
    return None


def _unquoted(text: str) -> str:
    """The text without the ``>`` before each line of a quotation that holds a fence."""
    if "> ```" not in text and ">```" not in text and "> ~~~" not in text:
        return text
    lines, quoted = text.split("\n"), False
    for number, line in enumerate(lines):
        start = line.lstrip()
        quoted = start.startswith(">") and (quoted or start[1:].lstrip().startswith(("```", "~~~")))
        if quoted:
            lines[number] = start[2:] if start.startswith("> ") else start[1:]
    return "\n".join(lines)


def _answer(prose: str) -> tuple[int, int] | None:
    """Where the content of the last ``<answer>`` starts and ends; one that is never closed runs to the end."""
    opened = prose.rfind("<answer>")
    if opened < 0:
        return None
    start = opened + len("<answer>")
    close = prose.find("</answer>", start)
    return (start, close) if close >= 0 else (start, len(prose))


def _without(text: str, found: list[Block]) -> str:
    """The text with every block blanked out, so that positions stay."""
    parts, at = [], 0
    for block in found:
        parts += [text[at : block.start], " " * (block.end - block.start)]
        at = block.end
    return "".join([*parts, text[at:]])


def _program(code: str) -> str | None:
    """The code without blank lines around it and without an indentation that all its lines share."""
    lines = code.replace("\ufeff", "", 1).split("\n") if code.lstrip().startswith("\ufeff") else code.split("\n")
    filled = [number for number, line in enumerate(lines) if line.strip()]
    if not filled:
        return None
    lines = lines[filled[0] : filled[-1] + 1]
    if lines[0][0] in " \t":
        width = min(_indent(line) for line in lines if line.strip())
        lines = [line[width:] for line in lines]
    return "\n".join(lines) + "\n"


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))


def blocks(text: str) -> list[Block]:
    """Fenced blocks, first to last, as CommonMark reads them, with what models get wrong tolerated.

    Tolerated: a fence after other text on its line, a tagged fence while a block is open (the close was forgotten),
    a closing fence after the last line of code, none at all.
    """
    found: list[Block] = []
    fence: _Fence | None = None
    start = at = 0
    body: list[str] = []
    for line in text.split("\n"):
        end = at + len(line)
        opening = _opening(line)
        if fence is None:
            one = _one_line(line, at)
            if one is not None:
                found.append(one)
            elif opening is not None:
                fence, start, body = opening, at + opening.column, []
        elif (close := _closing(line, fence)) is not None:
            code, after = close
            found.append(_block(fence, start, at + after, [*body, code]))
            fence = None
        elif opening is not None and _reopens(opening, fence):
            found.append(_block(fence, start, at - 1, body))
            fence, start, body = opening, at + opening.column, []
        else:
            body.append(line)
        at = end + 1
    if fence is not None:
        while body and (not body[-1].strip() or body[-1].lstrip().startswith(_AFTER)):
            body.pop()
        body = _without_deep_close(body, fence)
        found.append(_block(fence, start, len(text), body))
    return found


def _one_line(line: str, at: int) -> Block | None:
    """`````python print(1)````` on a line of its own: with the language, or it is inline code."""
    text = line.strip()
    if not (text.startswith("```") and text.endswith("```") and len(text) > 6):
        return None
    tag, _, code = text[3:-3].strip("`").partition(" ")
    if not code.strip() or "`" in code or not _is_language(tag.lower(), "python"):
        return None
    return Block(start=at, end=at + len(line), tag=tag.lower(), indent=_indent(line), code=code)


def _without_deep_close(body: list[str], fence: _Fence) -> list[str]:
    """The lines of a block that was never closed, up to a fence that is only indented too deep to close it."""
    for number in range(len(body) - 1, -1, -1):
        if body[number].strip() == fence.char * fence.length:
            before = "\n".join(body[:number])
            if number == len(body) - 1 or (_parses(before) and not _parses("\n".join(body))):
                return body[:number]
    return body


def _opening(line: str) -> _Fence | None:
    """The fence that this line opens a block with. ``text ```x``` text`` is inline code, no fence."""
    for char in _FENCES:
        column = line.find(char * 3)
        if column < 0:
            continue
        rest = line[column:].lstrip(char)
        length = len(line) - column - len(rest)
        words = rest.split(None, 1)
        tag = words[0].strip("{}.").lower() if words else ""
        before = line[:column].strip()
        alone = not before or _is_list_marker(before)
        # After other text only a bare tag counts: the rest of a sentence is no info string.
        if char in rest or (not alone and len(words) > 1) or not _is_tag(tag):
            continue
        return _Fence(char, length, column, column if alone else _indent(line), tag)
    return None


def _is_list_marker(text: str) -> bool:
    return text in ("-", "*", "+") or (text[-1] in ".)" and text[:-1].isdecimal())


def _is_tag(tag: str) -> bool:
    return tag == "" or (tag[0].isalnum() and all(c.isalnum() or c in "+-_.#:/" for c in tag))


def _closing(line: str, fence: _Fence) -> tuple[str, int] | None:
    """Code before a closing fence on its line, and the column after it."""
    mark = fence.char * fence.length
    column = line.find(mark)
    if column < 0:
        return None
    rest = line[column:].lstrip(fence.char)
    if rest.strip() and not rest.lstrip().startswith(_AFTER):
        return None
    before = line[:column]
    # A fence that is indented deeper than the opening belongs to a docstring.
    if not before.strip() and column > fence.indent + 3:
        return None
    return before, len(line) - len(rest)


def _reopens(opening: _Fence, fence: _Fence) -> bool:
    alone = opening.column == opening.indent
    return (
        alone
        and opening.tag != ""
        and opening.char == fence.char
        and opening.length >= fence.length
        and opening.indent <= fence.indent
    )


def _block(fence: _Fence, start: int, end: int, body: list[str]) -> Block:
    code = "\n".join(line[min(fence.indent, _indent(line)) :] for line in body)
    return Block(start=start, end=end, tag=fence.tag, indent=fence.indent, code=code)
