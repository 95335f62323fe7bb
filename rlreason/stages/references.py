"""Which model each stage of a recipe starts from: plain questions to the recipe."""

from __future__ import annotations

from dataclasses import dataclass

from rlreason.config import DistillStage, EvalStage, OpdStage, PolicyConfig, Recipe, RejectStage, Stage, stage_of

#: Models that are tables of the recipe and no stage's.
TABLES = ("policy", "student")


@dataclass(frozen=True, slots=True)
class References:
    """The names that the stages of ``recipe`` give to models, resolved."""

    recipe: Recipe

    def stage(self, name: str) -> Stage:
        """The stage called ``name``, or whose best checkpoint that is."""
        return next(stage for stage in self.recipe.stage if stage.name == stage_of(name))

    def model_of(self, stage: Stage) -> str:
        """The model a stage starts from: as named, else the newest descendant of the policy."""
        assert not isinstance(stage, EvalStage)
        if stage.model is not None:
            return stage.model
        found = "policy"
        for earlier in self.recipe.stage:
            if earlier.name == stage.name:
                break
            if not isinstance(earlier, (EvalStage, RejectStage)) and not self.is_student(earlier.name):
                found = earlier.name
        return found

    def traces_of(self, stage: DistillStage | OpdStage) -> RejectStage:
        """The stage whose traces ``stage`` learns."""
        rejects = []
        for earlier in self.recipe.stage:
            if earlier.name == stage.name:
                break
            if isinstance(earlier, RejectStage) and stage.traces in {None, earlier.name}:
                rejects.append(earlier)
        return rejects[-1]

    def parents(self, stage: Stage) -> list[str]:
        """Models and stages that ``stage`` is made from."""
        if isinstance(stage, EvalStage):
            return list(stage.models)
        parents = [self.model_of(stage)]
        if isinstance(stage, OpdStage):
            taught = [self.recipe.teacher[name].model for name in stage.teachers(self.recipe.teacher)]
            parents = list(dict.fromkeys([*parents, *(name for name in taught if name is not None)]))
        drawn = isinstance(stage, DistillStage) and stage.trace_set is None
        if drawn or (isinstance(stage, OpdStage) and stage.on_policy < 1):
            assert isinstance(stage, (DistillStage, OpdStage))
            parents.append(self.traces_of(stage).name)
        return parents

    def uses(self, table: str) -> bool:
        """Whether any stage starts from, measures or learns from the model of that table."""
        names = [one for stage in self.recipe.stage for one in self.parents(stage)]
        return table in {self.root(name) for name in names if name not in self.recipe.endpoint}

    def root(self, name: str) -> str:
        """The table that a model, or the model that drew traces, descends from; "" where a server drew them."""
        while name not in TABLES:
            if name in self.recipe.endpoint:
                return ""
            name = self.model_of(self.stage(name))
        return name

    def is_student(self, name: str) -> bool:
        """Whether the model of training stage ``name`` descends from the student."""
        while name not in TABLES:
            name = self.model_of(self.stage(name))
        return name == "student"

    def config(self, name: str) -> PolicyConfig:
        """The recipe's table of the model that ``name`` descends from."""
        config = self.recipe.student if self.is_student(name) else self.recipe.policy
        assert config is not None
        return config
