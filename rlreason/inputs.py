"""The files that a recipe names, by absolute path: the recipe's folder is looked into first, then the current one."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from rlreason import extensions
from rlreason.config import (
    DataSetConfig,
    DistillStage,
    PolicyConfig,
    Recipe,
    RejectStage,
    RewardTable,
    Stage,
    TeacherConfig,
)
from rlreason.config.reward_audit import RewardAudit
from rlreason.data.files import MissingSource, locate
from rlreason.data.places import AnyOf, Place, Where
from rlreason.data.source import FILE_ENDINGS
from rlreason.errors import UsageError
from rlreason.rewards import plugins
from rlreason.rewards.registry import entry_point_module
from rlreason.run.inputs import InputFile, Kind, KnownInputs
from rlreason.traces.rows import KEPT


@dataclass(slots=True, kw_only=True)
class RecipeFiles:
    """Makes the names of a recipe absolute paths; ``known``: inputs of the run that is gone on with or followed."""

    base: Path
    known: KnownInputs | None = None
    #: Data file, by absolute path -> what it is; of a function that gives rows its file, by ``/path/file.py:name``.
    data_files: dict[str, InputFile] = field(default_factory=dict)
    #: Reward code likewise, modules by name.
    rewards: dict[str, InputFile] = field(default_factory=dict)
    #: Kept rows of trace sets.
    traces: list[InputFile] = field(default_factory=list)

    @property
    def copies(self) -> dict[str, Path]:
        """Data files that are read from somewhere else than their path says."""
        return {path: one.file for path, one in self.data_files.items() if str(one.file) != path}

    def data(self, where: Where | None) -> Where | None:
        """Places of problems with every file that is there as an absolute path."""
        if where is None:
            return None
        return tuple(map(self._place, where)) if isinstance(where, tuple) else self._place(where)

    def _place(self, place: Place) -> Place:
        if isinstance(place, str):
            return self._data_file(place)
        return AnyOf(any_of=tuple(map(self._data_file, place.any_of)))

    def _data_file(self, name: str) -> str:
        if extensions.is_code(name):
            return self.code(name, "data")
        if not name.endswith(FILE_ENDINGS):
            return name
        try:
            found: Path | None = _absolute(locate(name, self.base))
        except MissingSource:
            found = None
        one = self._resolve("data", name, found)
        if one is None:
            return name
        self.data_files[one.path] = one
        return one.path

    def reward(self, spec: str) -> str:
        """A reward's or verifier's name with a plug-in file as an absolute path; other names stay as they are.

        Raises ValueError where the name is no plug-in's or its file is not there.
        """
        if ":" not in spec:
            module = entry_point_module(spec)
            if module is not None:
                self._module(module)
            return spec
        return self.code(spec, "reward")

    def code(self, spec: str, kind: Kind) -> str:
        """Likewise for ``path/file.py:name`` and ``pkg.mod:name``, whose file counts among the inputs of the run."""
        target = plugins.parse(spec)
        if target.is_folder:  # a reward model
            found = next((_absolute(path) for path in self._candidates(target) if path.is_dir()), None)
            return spec if found is None else replace(target, place=str(found)).spec
        if not target.is_file:
            if target.is_module:
                self._module(target.place)
            return spec
        candidates = self._candidates(target)
        found = next((_absolute(path) for path in candidates if path.is_file()), None)
        one = self._resolve(kind, target.place, found)
        if one is None:
            raise ValueError(_no_file(target, candidates))
        named = replace(target, place=one.path).spec
        if kind == "data":
            self.data_files[named] = one
        else:
            self.rewards[one.path] = one
        return named

    def _candidates(self, target: plugins.Target) -> list[Path]:
        place = Path(target.place).expanduser()
        return [place] if place.is_absolute() else [self.base / place, place]

    def watcher(self, name: str, key: str) -> str:
        """A tracker's or health rule's name with its file as an absolute path. It changes no result and is no input.

        Raises UsageError where the file is not there.
        """
        if not extensions.is_code(name) or not (target := plugins.parse(name)).is_file:
            return name
        candidates = self._candidates(target)
        for path in candidates:
            if path.is_file():
                return replace(target, place=str(_absolute(path))).spec
        raise UsageError(f"{key}: {_no_file(target, candidates)}")

    def loaded(self, spec: str) -> str:
        """What is loaded for ``spec``, one that ``reward`` gave: the same name with the file that is read."""
        if ":" not in spec:
            return spec
        target = plugins.parse(spec)
        return replace(target, place=str(self.rewards[target.place].file)).spec if target.is_file else spec

    def trace_set(self, folder: str) -> str:
        """A folder of traces as an absolute path, its kept rows among the inputs; one that is not there stays.

        Raises UsageError where the run was begun with other rows.
        """
        place = Path(folder).expanduser()
        for one in [place] if place.is_absolute() else [self.base / place, place]:
            if (one / KEPT).is_file():
                rows = self._resolve("data", str(_absolute(one / KEPT)), _absolute(one / KEPT))
                if rows is not None:
                    self.traces.append(rows)
                return str(_absolute(one))
        return folder

    def model(self, config: PolicyConfig) -> PolicyConfig:
        """A model's table with a local folder or GGUF file as an absolute path; a hub id stays."""
        return config if config.path is None else config.model_copy(update={"path": self.weights(config.path)})

    def weights(self, path: str) -> str:
        """A local folder or GGUF file of a model as an absolute path; a hub id stays."""
        place = Path(path).expanduser()
        for folder in [place] if place.is_absolute() else [self.base / place, place]:
            if folder.is_dir() or (folder.is_file() and folder.suffix == ".gguf"):
                return str(_absolute(folder))
        return path

    def _module(self, name: str) -> None:
        file = plugins.module_file(name)
        if file is not None and file.is_file():
            known = self.known or KnownInputs(root=self.base, entries=())
            self.rewards[name] = known.module(name, file)

    def _resolve(self, kind: Kind, name: str, found: Path | None) -> InputFile | None:
        if self.known is not None:
            return self.known.resolve(kind, name, found)
        return None if found is None else InputFile(kind=kind, path=str(found), file=found)


def _no_file(target: plugins.Target, looked: list[Path]) -> str:
    return f"plug-in file {target.place!r} does not exist (looked for {', '.join(map(str, looked))})"


def _absolute(path: Path) -> Path:
    """Without following links, whose target may change."""
    return Path(os.path.abspath(path))


def absolute_recipe(recipe: Recipe, files: RecipeFiles) -> Recipe:
    """The recipe with every file and folder that it names as an absolute path.

    Raises UsageError for a plug-in that is not there.
    """
    data = recipe.data.model_copy(
        update={
            "train": _data(files, recipe.data.train, "data.train:"),
            "heldout": _data(files, recipe.data.heldout, "data.heldout:"),
            "verifier": _reward(files, recipe.data.verifier, "data.verifier:"),
            **{name: _absolute_set(files, name, one) for name, one in recipe.data.sets.items()},
        }
    )
    student = recipe.student
    rules = tuple(files.watcher(name, "health.rules") for name in recipe.health.rules)
    trackers = tuple(files.watcher(name, "logging.trackers") for name in recipe.logging.trackers)
    stages = tuple(_absolute_stage(files, recipe, one) for one in recipe.stage)
    return recipe.model_copy(
        update={
            "stage": stages,
            "policy": files.model(recipe.policy),
            "student": None if student is None else files.model(student),
            "teacher": {name: _absolute_teacher(files, one) for name, one in recipe.teacher.items()},
            "data": data,
            "reward": _rewards(files, recipe.reward, "[reward]"),
            "reward_audit": _audit_places(files, recipe.reward_audit),
            "health": recipe.health.model_copy(update={"rules": rules}),
            "logging": recipe.logging.model_copy(update={"trackers": trackers}),
        }
    )


def _rewards(files: RecipeFiles, table: RewardTable, place: str) -> RewardTable:
    return {_reward(files, name, place): term for name, term in table.items()}


def _absolute_stage(files: RecipeFiles, recipe: Recipe, stage: Stage) -> Stage:
    if isinstance(stage, DistillStage) and stage.trace_set is not None:
        return stage.model_copy(update={"trace_set": files.trace_set(stage.trace_set)})
    if isinstance(stage, RejectStage):
        return _absolute_benchmarks(files, stage)
    if not recipe.has_own_reward(stage):
        return stage
    own = _rewards(files, recipe.reward_of(stage), f"stage.{stage.name}.reward:")
    return stage.model_copy(update={"reward": own})


def _absolute_teacher(files: RecipeFiles, table: TeacherConfig) -> TeacherConfig:
    return table if table.path is None else table.model_copy(update={"path": files.weights(table.path)})


def _absolute_benchmarks(files: RecipeFiles, stage: RejectStage) -> RejectStage:
    """The benchmarks that its traces must not hold; those that are not there are said by who reads them."""
    if stage.filters is None:
        return stage
    wanted, found = stage.filters.decontaminate, []
    for name in wanted.against:
        place = Path(name).expanduser()
        known = [one for one in (files.base / place, place) if one.is_file()]
        found.append(str(_absolute(known[0] if known else files.base / place)))
    wanted = wanted.model_copy(update={"against": tuple(found)})
    return stage.model_copy(update={"filters": stage.filters.model_copy(update={"decontaminate": wanted})})


def _audit_places(files: RecipeFiles, audit: RewardAudit) -> RewardAudit:
    if audit.audits is None:
        return audit
    place = Path(audit.audits).expanduser()
    found = next((one for one in (files.base / place, place) if one.exists()), files.base / place)
    return audit.model_copy(update={"audits": str(_absolute(found))})


def unwatched(recipe: Recipe) -> Recipe:
    """The recipe without trackers and health rules, for what measures its models and trains none of them."""
    return recipe.model_copy(
        update={
            "health": recipe.health.model_copy(update={"rules": ()}),
            "logging": recipe.logging.model_copy(update={"trackers": ()}),
        }
    )


def _absolute_set(files: RecipeFiles, name: str, table: DataSetConfig) -> DataSetConfig:
    verifier = _reward(files, table.verifier, f"data.{name}.verifier:")
    path = _data(files, table.path, f"data.{name}.path:")
    return table.model_copy(update={"path": path, "verifier": verifier})


def _data(files: RecipeFiles, where: Where | None, place: str) -> Where | None:
    try:
        return files.data(where)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{place} {error}") from error


def _reward(files: RecipeFiles, spec: str, place: str) -> str:
    try:
        return files.reward(spec)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{place} {error}") from error
