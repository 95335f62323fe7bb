"""Which program a response proposes: the last fenced block after the thought. One pass over the lines, no regex."""

from __future__ import annotations

from dataclasses import dataclass

#: Fence tags that mean a language; any other language is known by its own name only.
_ALIASES = {"python": frozenset({"python", "py", "python3", "py3"})}
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
      languages are skipped. The last block is not closed in a response that was cut off: it runs to the end.
    - A last ``<answer>`` decides, unless a block follows it; its content may be fenced or bare.
    - ``whole_text``: a response without a block is a program as it stands. Fences inside it that are indented (in a
      docstring) are then no blocks.
    - A ``<think>`` that is never closed has no answer after it. Tags inside a block are program text.
    """
    _, _, text = response.replace("\r\n", "\n").rpartition("</think>")
    found = blocks(text)
    if whole_text:
        found = [block for block in found if block.indent == 0]
    prose = _without(text, found)
    if "<think>" in prose:
        return None
    tags = _ALIASES[language] if language in _ALIASES else frozenset({language})
    answer = _answer(prose)
    if answer is not None and not any(block.start >= answer[1] and block.tag in tags | {""} for block in found):
        start, end = answer
        found = [block for block in found if start <= block.start < end]
        if not found:
            return _program(text[start:end])
    usable = [block for block in found if block.tag in tags] or [block for block in found if block.tag == ""]
    if usable:
        return _program(usable[-1].code)
    return _program(text) if whole_text and not found else None


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
    lines = code.split("\n")
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
            if opening is not None:
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
        found.append(_block(fence, start, len(text), body))
    return found


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
