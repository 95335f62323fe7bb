"""The recipe's tables of problems: ``[data]`` for one set, ``[data.NAME]`` for several, and what stages say of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from rlreason.config.engine import Section
from rlreason.data.choice_sets import CHOICE_SETS
from rlreason.data.code_sets.sets import CODE_SETS
from rlreason.data.places import AnyOf, PassRate, Where
from rlreason.data.rows import Columns
from rlreason.errors import nearest, suggest

Scalar = str | int | float | bool
#: A set's name, or several with their shares: ``{ gsm8k = 0.7, math = 0.3 }``.
DataChoice = str | dict[str, float]
SET_NAME = r"[a-z0-9][a-z0-9_]*"


def _is_where(value: Any) -> Any:
    """``value``, where it has the form of a ``Where``: one sentence for what pydantic says in three."""
    places = value if isinstance(value, list | tuple) else [value]
    for place in places:
        names = place["any_of"] if isinstance(place, dict) and list(place) == ["any_of"] else None
        are_names = isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names)
        if not (isinstance(place, str | AnyOf) or are_names):
            raise ValueError(
                f"{value!r} is neither a task, file or hub id, nor a list of these, nor {{ any_of = [...] }}"
            )
    if not places:
        raise ValueError("is empty; give a task, a file or a hub id")
    return value


Origin = Annotated[Where, BeforeValidator(_is_where)]


class ProblemTable(Section):
    """How problems are read and asked: the same keys in ``[data]`` and in every ``[data.NAME]``."""

    #: Options of a procedural task, or of a function that gives the problems.
    options: dict[str, Scalar] = Field(default_factory=dict)
    #: Which column of a data file holds what; of several names the first that the file has.
    columns: Columns = Columns()
    #: The gold answer is what follows this marker in the answer column.
    answer_after: str | None = None
    #: Read the rows as the hub has them of this code data set, such as ``apps`` (see ``rlreason data``), or of this
    #: multiple-choice set: arc, gpqa, mmlu, mmlu_pro.
    convert: str | None = None
    #: How answers of file and hub data are checked; procedural tasks name their own.
    verifier: str = "math"
    #: System prompt of problems that bring none of their own.
    system: str | None = None
    #: What each question is put into, with {prompt} where it stands; default: the question alone.
    prompt_template: str | None = None
    #: Where the final answer stands: <answer>…</answer> or \boxed{…}.
    answer_style: Literal["tags", "boxed"] = "tags"
    #: Arguments for the tokenizer's chat template, such as ``enable_thinking = false``.
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    #: Share of the rows that is held out, chosen by a hash of the prompt: the same rows for every seed.
    split: float = Field(0.0, ge=0, lt=1)
    #: Leave rows out that can't be read, and say how many, instead of refusing the first.
    skip_bad_rows: bool = False
    #: Train only on rows whose measured pass rate lies in a range.
    pass_rate: PassRate | None = None


class DataSetConfig(ProblemTable):
    """A named set of problems, ``[data.NAME]``."""

    #: A procedural task, a file, a hub id, or a function of your own (`path/file.py:rows`, docs/extending.md);
    #: `{ any_of = [...] }`: the first that there is; a list: all of them.
    path: Origin


#: Keys of ``[data]`` that a named set takes over where it says nothing of its own: how its problems are asked.
ASKED = ("system", "prompt_template", "answer_style", "chat_template_kwargs")


class DataConfig(ProblemTable):
    """Where problems come from and how they are asked; further keys are named sets, ``[data.NAME]``, which are asked as
    ``[data]`` says where they don't say it: system, prompt_template, answer_style, chat_template_kwargs."""

    model_config = Section.model_config | {"extra": "allow"}
    __pydantic_extra__: dict[str, DataSetConfig] = Field(init=False)

    #: What stages train on that name no data of their own: a procedural task, a file, a hub id, a function of your own,
    #: a list of these, or the name of a set.
    train: Origin | None = None
    #: What evaluations measure and no stage trains on, named in the same ways. Default: what ``split`` or the task
    #: holds out.
    heldout: Origin | None = None
    #: Go on although held-out prompts are also training prompts; accuracy on them says little.
    allow_overlap: bool = False
    #: A prompt that leaves no room for an answer stops the run, or is left out and counted.
    overlong_prompts: Literal["refuse", "drop"] = "refuse"

    @property
    def sets(self) -> Mapping[str, DataSetConfig]:
        """The named sets."""
        return self.__pydantic_extra__

    @property
    def train_name(self) -> str:
        """What problems of ``train`` are called: the named set that it is, else "train"."""
        return self.train if isinstance(self.train, str) and self.train in self.sets else "train"

    def shares(self, choice: DataChoice | None) -> Mapping[str, float]:
        """The sets of a stage's ``data`` and their shares, which need not add up to 1; None: ``train`` alone."""
        if isinstance(choice, dict):
            return choice
        return {choice or self.train_name: 1.0}

    @model_validator(mode="before")
    @classmethod
    def _names(cls, table: Any) -> Any:
        for name, value in table.items() if isinstance(table, dict) else ():
            if name in cls.model_fields or isinstance(value, DataSetConfig):
                continue
            near = nearest(name, cls.model_fields)
            if not isinstance(value, dict) or (near and "path" not in value):
                raise ValueError(
                    f"unknown key data.{name}{near}; allowed here: {', '.join(cls.model_fields)}, and named sets, "
                    f"such as [data.gsm8k] with a path"
                )
            if re.fullmatch(SET_NAME, name) is None:
                raise ValueError(f"data.{name}: names of sets are small letters, digits and _, such as gsm8k_hard")
        return table

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
        for name, named in self.sets.items():
            taken = {key: getattr(self, key) for key in ASKED if key not in named.model_fields_set}
            self.__pydantic_extra__[name] = named.model_copy(update=taken)
        self._check_used()
        if self.train is None and not self.sets:
            raise ValueError("data.train is missing: name a task, a file or a hub id, or make sets [data.NAME]")
        if self.split and self.heldout is not None:
            raise ValueError("data.split holds rows of data.train out, and data.heldout names others: use one of them")
        for place, one in (("data", self), *((f"data.{name}", one) for name, one in self.sets.items())):
            rate = one.pass_rate
            if rate is not None and not rate.min <= rate.max:
                raise ValueError(f"{place}.pass_rate: min = {rate.min:g} is over max = {rate.max:g}")
            if one.prompt_template is not None and "{prompt}" not in one.prompt_template:
                raise ValueError(f"{place}.prompt_template has no {{prompt}}, where the question is to stand")
            if one.convert is not None and one.convert not in {**CODE_SETS, **CHOICE_SETS}:
                known = {**CODE_SETS, **CHOICE_SETS}
                raise ValueError(f"{place}.convert: no code data set {one.convert!r}: {suggest(one.convert, known)}")
            if one.convert is not None and one.columns != Columns():
                raise ValueError(f"{place}.convert reads the columns that {one.convert} has: leave {place}.columns out")
        return self

    def _check_used(self) -> None:
        """Raise ValueError where ``[data]`` says how rows are read and reads none itself."""
        own = [one for one in (self.train, self.heldout) if one is not None]
        if not all(isinstance(one, str) and one in self.sets for one in own):
            return
        for key, field in ProblemTable.model_fields.items():
            if key not in (*ASKED, "options") and getattr(self, key) != field.get_default(call_default_factory=True):
                where = " or ".join(f"[data.{name}]" for name in self.sets)
                raise ValueError(f"data.{key} does nothing, as all problems are of named sets: write it in {where}")

    def check_choice(self, choice: DataChoice | None, place: str) -> None:
        """Raise ValueError where ``choice``, the value of the key ``place``, names no set or has impossible shares."""
        if choice is None:
            if self.train is None:
                raise ValueError(f"{place} is missing, and there is no data.train: name one of {', '.join(self.sets)}")
            return
        for name in [choice] if isinstance(choice, str) else choice:
            if name not in self.sets:
                known = ", ".join(self.sets) or "none: add [data." + name + "] with a path"
                raise ValueError(f"{place}: no set {name!r}{nearest(name, self.sets)} (sets: {known})")
        if isinstance(choice, dict) and (not choice or min(choice.values()) <= 0):
            raise ValueError(
                f"{place} = {choice}: a mix needs sets with shares above 0, such as {{ a = 0.7, b = 0.3 }}"
            )


class CurriculumConfig(Section):
    """Problems that are always solved teach nothing: pass over them, and ask again later."""

    #: Times in a row that all completions of a problem must be correct before it is passed over.
    skip_solved_after: int = Field(2, ge=1)
    #: Steps after which it is asked again.
    retry_after: int = Field(100, ge=1)
