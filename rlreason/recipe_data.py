"""The recipe's tables of problems, read: [data] and [data.NAME] become what each stage trains and is measured on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from rlreason.config import (
    DataChoice,
    DataConfig,
    DataSetConfig,
    DistillStage,
    EvalStage,
    GrpoStage,
    OpdStage,
    Recipe,
    RejectStage,
    SftStage,
    Stage,
)
from rlreason.data.code_sets.sets import CODE_SETS
from rlreason.data.places import Where
from rlreason.data.prompts import PromptFormat
from rlreason.data.rows import RowFormat
from rlreason.data.run_data import RunData
from rlreason.data.source import OpenSet, ProblemSource, SetSpec, open_set, unused_options
from rlreason.data.supplies import MixSupply, RowSupply, Supply, TaskSupply
from rlreason.errors import UsageError
from rlreason.inputs import RecipeFiles

Held = TaskSupply | RowSupply


@dataclass(slots=True, kw_only=True)
class RecipeData:
    """Reads each set when a stage first asks for it, and once."""

    recipe: Recipe
    base: Path
    files: RecipeFiles
    #: By name; those of [data] are "train" and "heldout".
    named: dict[str, OpenSet] = field(default_factory=dict)
    table: dict[str, OpenSet] = field(default_factory=dict)
    trained: dict[str, Held] = field(default_factory=dict)
    measured: dict[str, Held] = field(default_factory=dict)

    def read(self) -> RunData:
        """The problems of every stage. Raises UsageError naming what is wrong and what to do."""
        stages = {stage.name: self._source(stage) for stage in self.recipe.stage}
        if not self.trained and self.recipe.data.train is not None:  # a tokenizer is made from it
            self._train_on(self.recipe.data.train_name, self._default())
        self._check_options()
        return RunData(stages=stages, trained=self.trained, measured=self.measured)

    def taken(self) -> DataConfig:
        """The recipe's data with what was read of the places that may be."""
        data = self.recipe.data
        update: dict[str, object] = {key: opened.where for key, opened in self.table.items()}
        for name, opened in self.named.items():
            update[name] = data.sets[name].model_copy(update={"path": opened.where})
        return data.model_copy(update=update)

    def _source(self, stage: Stage) -> ProblemSource:
        if isinstance(stage, (SftStage, GrpoStage, RejectStage, OpdStage)):
            return ProblemSource(self._training(stage), self._heldout(stage))
        heldout = self._heldout(stage)
        if isinstance(stage, DistillStage) and stage.general is not None:
            return ProblemSource(self._chosen(stage.general), heldout)
        # Nothing is trained on here, or traces are: a source needs some problems all the same.
        train = heldout or next(iter(self.trained.values()), None) or self._default().train
        return ProblemSource(train, heldout)

    def _training(self, stage: SftStage | GrpoStage | RejectStage | OpdStage) -> Supply:
        choice = stage.data
        if choice is None:
            return self._train_on(self.recipe.data.train_name, self._default())
        return self._chosen(choice)

    def _chosen(self, choice: DataChoice) -> Supply:
        if isinstance(choice, str):
            return self._train_on(choice, self._set(choice))
        parts = {name: (self._train_on(name, self._set(name)), share) for name, share in choice.items()}
        return MixSupply(parts, self.recipe.seed)

    def _train_on(self, name: str, opened: OpenSet) -> Held:
        self.trained[name] = opened.train
        return opened.train

    def _heldout(self, stage: Stage) -> Held | None:
        """What the stage is measured on: what it names, else what its own set holds out, else ``data.heldout``."""
        data = self.recipe.data
        if isinstance(stage, EvalStage):
            named = stage.data
        else:
            named = None if isinstance(stage, RejectStage) else stage.heldout
            if named is None and isinstance(stage, (SftStage, GrpoStage, OpdStage)) and isinstance(stage.data, str):
                own = self._set(stage.data)
                if own.heldout is not None:
                    return self._measure(stage.data, own)
        if named is not None:
            return self._measure(named, self._set(named))
        if data.heldout is not None:
            if isinstance(data.heldout, str) and data.heldout in data.sets:
                return self._measure(data.heldout, self._set(data.heldout))
            if "heldout" not in self.table:
                self.table["heldout"] = open_set(self._spec(data, data.heldout, "heldout"))
            return self._measured("heldout", self.table["heldout"].as_heldout)
        if data.train is None:
            return None
        if isinstance(data.train, str) and data.train in data.sets:
            own = self._set(data.train)
            return None if own.heldout is None else self._measure(data.train, own)
        own = self._default()
        return None if own.heldout is None else self._measured("heldout", own.heldout)

    def _measure(self, name: str, opened: OpenSet) -> Held:
        return self._measured(name if opened.heldout is None else f"{name}/heldout", opened.as_heldout)

    def _measured(self, name: str, supply: Held) -> Held:
        self.measured[name] = supply
        return supply

    def _default(self) -> OpenSet:
        """What ``data.train`` names."""
        train = self.recipe.data.train
        if isinstance(train, str) and train in self.recipe.data.sets:
            return self._set(train)
        if train is None:
            return self._set(next(iter(self.recipe.data.sets)))
        if "train" not in self.table:
            self.table["train"] = open_set(self._spec(self.recipe.data, train, "train"))
        return self.table["train"]

    def _set(self, name: str) -> OpenSet:
        if name not in self.named:
            config = self.recipe.data.sets[name]
            spec = self._spec(config, config.path, f"{name}.path")
            self.named[name] = open_set(replace(spec, form=replace(spec.form, data_set=name)))
        return self.named[name]

    def _spec(self, table: DataConfig | DataSetConfig, where: Where, key: str) -> SetSpec:
        held_out = key == "heldout"
        return SetSpec(
            where=where,
            setting=f"data.{key}",
            options=table.options,
            form=RowFormat(
                columns=table.columns,
                answer_after=table.answer_after,
                convert=table.convert,
                # Tests are the code verifier's, and "math" is only what a table says that names none.
                verifier=self.files.loaded(
                    "code" if table.convert in CODE_SETS and table.verifier == "math" else table.verifier
                ),
                skip_bad_rows=table.skip_bad_rows,
                pass_rate=None if held_out else table.pass_rate,
            ),
            seed=self.recipe.seed,
            split=0.0 if held_out else table.split,
            hub_split="test" if held_out else "train",
            base=self.base,
            copies=self.files.copies,
        )

    def _check_options(self) -> None:
        tables = {f"data.{name}": (self.recipe.data.sets[name].options, [one]) for name, one in self.named.items()}
        if self.table:
            tables["data"] = (self.recipe.data.options, [*self.table.values()])
        for place, (options, opened) in tables.items():
            if options and not any(one.takes_options for one in opened):
                raise unused_options(options, place, opened[0].train.origin)


def prompt_format(data: DataConfig) -> PromptFormat:
    """How the problems of each set become prompts."""

    def of(table: DataConfig | DataSetConfig) -> PromptFormat:
        return PromptFormat(
            system=table.system,
            style=table.answer_style,
            template=table.chat_template_kwargs,
            ask=table.prompt_template,
        )

    return replace(of(data), sets={name: of(table) for name, table in data.sets.items()})


def check_overlap(data: RunData, *, allowed: bool) -> None:
    """Raise UsageError where what is measured is also trained on, unless the recipe allows it."""
    found = data.overlaps()
    if found and not allowed:
        raise UsageError(
            "; ".join(map(str, found)) + ": accuracy on them says little. Take them out of one of the two, or say "
            "data.allow_overlap = true"
        )
