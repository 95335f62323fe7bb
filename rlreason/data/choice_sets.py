"""Multiple-choice sets as the hub has them: MMLU, MMLU-Pro, ARC, GPQA. Each row is a question with lettered options.

The letter of the right option is the answer. A row that a file already has in that form stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rlreason.data.code_sets.cells import BadRow, Cells, HubRow, mapping, texts
from rlreason.streams import permutation

__all__ = ["CHOICE_SETS", "Choices", "choices_asked"]

_LETTERS: Final = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """A question with its options in order, of which ``right`` (from 0) is the right one.

    Example: ``Choices(key="arc-1", question="What melts first?", options=("iron", "ice"), right=1)``.
    """

    #: The data set's name of it; "" where it has none.
    key: str
    question: str
    options: Sequence[str]
    right: int

    def row(self) -> dict[str, object]:
        """The row of a problem file."""
        if not 2 <= len(self.options) <= len(_LETTERS) or not 0 <= self.right < len(self.options):
            raise BadRow(f"it has {len(self.options)} options, of which the right one is number {self.right + 1}")
        lines = [f"{letter}) {text}" for letter, text in zip(_LETTERS, self.options, strict=False)]
        row: dict[str, object] = {"prompt": f"{self.question.strip()}\n\n" + "\n".join(lines)}
        return row | {"answer": _LETTERS[self.right]} | ({"id": self.key} if self.key else {})


def choices_asked(read: Callable[[HubRow], Choices], cells: Cells) -> Mapping[str, object]:
    """``cells`` as a row of a problem file. Raises BadRow."""
    if isinstance(cells.get("prompt"), str) and "answer" in cells:
        return cells
    row = HubRow(cells)
    found = read(row).row()
    return found | {name: value for name, value in row.rest().items() if name not in found}


def mmlu(row: HubRow) -> Choices:
    """cais/mmlu and TIGER-Lab/MMLU-STEM: ``question``, ``choices``, and the right one's number or letter."""
    options = texts(row.structure("choices"), "choices")
    return Choices(key="", question=row.text("question"), options=options, right=_number(row.value("answer")))


def mmlu_pro(row: HubRow) -> Choices:
    """TIGER-Lab/MMLU-Pro: up to ten ``options`` and ``answer``, a letter."""
    options = texts(row.structure("options"), "options")
    key = f"mmlu-pro-{row.text('question_id')}"
    return Choices(key=key, question=row.text("question"), options=options, right=_number(row.value("answer")))


def arc(row: HubRow) -> Choices:
    """allenai/ai2_arc: ``choices`` holds texts and labels, which are letters or digits; ``answerKey`` is a label."""
    choices = mapping(row.structure("choices"), "choices")
    labels, options = texts(choices.get("label"), "label"), texts(choices.get("text"), "text")
    label = row.text("answerKey")
    if label not in labels:
        raise BadRow("'answerKey' is none of its labels")
    return Choices(key=row.text("id"), question=row.text("question"), options=options, right=labels.index(label))


def gpqa(row: HubRow) -> Choices:
    """Idavidrein/gpqa: the right and three wrong answers, in an order that depends on the question alone."""
    question = row.text("Question")
    options = [row.text("Correct Answer").strip()]
    options += [row.text(f"Incorrect Answer {number}").strip() for number in (1, 2, 3)]
    order = permutation(len(options), "gpqa", question)
    key = row.optional_text("Record ID")
    return Choices(key=key, question=question, options=[options[place] for place in order], right=order.index(0))


def _number(value: object) -> int:
    if isinstance(value, str) and value.strip().upper() in _LETTERS and value.strip():
        return _LETTERS.index(value.strip().upper())
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise BadRow("'answer' is neither a letter nor the number of an option, from 0")


#: By name: what ``data.convert`` may say.
CHOICE_SETS: Mapping[str, Callable[[HubRow], Choices]] = {"arc": arc, "gpqa": gpqa, "mmlu": mmlu, "mmlu_pro": mmlu_pro}
