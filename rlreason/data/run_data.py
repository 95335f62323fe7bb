"""All problems of a run: what each stage trains on and is measured on, and what these have in common."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from rlreason.data.source import ProblemSource, SourcePart, part_of
from rlreason.data.supplies import Key, LeftOut, RowSupply, Supply, TaskSupply, joined_alphabet, plain

__all__ = ["Overlap", "RunData", "told_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Held-out rows that ask what a training row asks, but for case and white space.

    Example: ``Overlap(train="gsm8k", heldout="gsm8k_test", rows=12, of=1319, problem="test-17")``.
    """

    train: str
    heldout: str
    #: Held-out rows that are also trained on, of how many.
    rows: int
    of: int
    #: Id of the first of them.
    problem: str

    def __str__(self) -> str:
        return (
            f"{self.rows} of {self.of} held-out prompts ({self.heldout}) are also training prompts ({self.train}), "
            f"such as that of problem {self.problem!r}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """The problems of every stage, and all sets that are trained on or measured, by the names that people see.

    Example: ``RunData(stages={"grpo": source}, trained={"train": rows}, measured={"heldout": others})``.
    """

    stages: Mapping[str, ProblemSource]
    trained: Mapping[str, TaskSupply | RowSupply]
    measured: Mapping[str, TaskSupply | RowSupply]

    def of(self, stage: str) -> ProblemSource:
        """What the stage called ``stage`` trains on and is measured on."""
        return self.stages[stage]

    @property
    def alphabet(self) -> str | None:
        """Every character of all problems where tasks make them, each once; None where there are rows."""
        return joined_alphabet([*self.trained.values(), *self.measured.values()])

    def texts(self) -> Iterator[str]:
        """Training texts to make a tokenizer from; where nothing is trained on, those that are measured."""
        for supply in (self.trained or self.measured).values():
            yield from ProblemSource(supply, None).texts()

    def parts(self) -> dict[str, SourcePart]:
        """What each set is, for the manifest."""
        found = {name: part_of(supply) for name, supply in self.trained.items()}
        overlaps = self.overlaps()
        for name, supply in self.measured.items():
            rows = max((one.rows for one in overlaps if one.heldout == name), default=0)
            found[name] = replace(part_of(supply, heldout=True), overlap=rows)
        return found

    def overlaps(self) -> list[Overlap]:
        """Every pair of a set that is trained on and one that is measured that have prompts in common."""
        found = []
        for name, supply in self.trained.items():
            if isinstance(supply, TaskSupply):
                continue
            prompts = {plain(problem.prompt) for problem in supply.specimens()}
            for other, measured in self.measured.items():
                if isinstance(measured, TaskSupply):
                    continue
                same = [problem.id for problem in measured.specimens() if plain(problem.prompt) in prompts]
                if same:
                    found.append(Overlap(train=name, heldout=other, rows=len(same), of=measured.size, problem=same[0]))
        return found

    def without(self, left_out: Collection[Key]) -> "RunData":
        """The same, and no stage is given a problem of ``left_out``. Raises UsageError where nothing stays."""
        return replace(self, stages={name: source.without(left_out) for name, source in self.stages.items()})

    def supplies(self) -> dict[str, Supply]:
        """All sets by their names."""
        return {**self.trained, **self.measured}


def told_of(data: RunData) -> list[str]:
    """What a person must hear of the data when a run begins: overlap that is allowed, and rows that are left out."""
    lines = [f"WARNING: {overlap}" for overlap in data.overlaps()]
    for name, supply in data.supplies().items():
        left_out = supply.left_out if isinstance(supply, RowSupply) else LeftOut()
        if left_out.bad_rows:
            lines.append(f"{name}: {left_out.bad_rows} bad rows left out; the first: {left_out.first_bad}")
        if left_out.outside:
            lines.append(f"{name}: {left_out.outside} problems left out for their pass rate")
    return lines
