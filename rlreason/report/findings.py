"""What the run found, from its own numbers: the one-line result, the table of models, accuracy by difficulty.

A claim is made only where the data carries it. Two models differ when the paired verdict on the problems that both
answered says so; where completions are not there, when the 95 % interval of the difference leaves out zero. That is
Newcombe's (1998, method 10), built from the two models' own intervals as if their samples were independent.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath

from rlreason.report.read import Evaluation, Run, Stage, as_dict, as_list, heldout_points, whole, words
from rlreason.report.words import percent
from rlreason.types import Interval

#: Parents that are no stage: the models that the recipe describes, built or loaded anew. Stages may have the same
#: name (a distill stage is often called "student"), so these words never mean a stage, except for an eval stage.
FRESH = frozenset({"policy", "student"})

#: By suite and model: 1, problem by problem it is better than the one it was made from; -1, worse; 0, nothing can be
#: told. Of pairs whose completions are there.
Signs = Mapping[tuple[str, str], int]

#: Tags drawn on the page; beyond these the panels say more about the screen than about the model.
MAX_TAGS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One evaluated model beside the model it was trained from."""

    stage: Stage | None
    result: Evaluation
    base: Evaluation | None
    #: Accuracy minus the base's, with its 95 % interval; None without a base.
    gain: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TagPanel:
    """Accuracy of each model on the problems of one tag."""

    tag: str
    rows: list[tuple[str, Interval]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """All models on one suite."""

    name: str
    models: list[Model]
    panels: list[TagPanel]
    tags_left_out: int

    @property
    def top(self) -> float:
        """Where the scale of this suite's charts ends."""
        intervals = [model.result.accuracy for model in self.models]
        intervals += [interval for panel in self.panels for _, interval in panel.rows]
        return round_top([interval.high for interval in intervals])


def round_top(values: list[float]) -> float:
    """A round end for a scale from 0, so that a run at two per cent is not a dot at the edge."""
    highest = max(values, default=1.0)
    return next((top for top in (0.02, 0.04, 0.1, 0.2, 0.4) if highest <= top), 1.0)


def difference(new: Interval, old: Interval) -> Interval:
    """`new - old` with Newcombe's 95 % interval. Example: 0.81 [.77, .85] minus 0.44 [.40, .48] is 0.37 [.31, .43]."""
    gap = new.value - old.value
    down = ((new.value - new.low) ** 2 + (old.high - old.value) ** 2) ** 0.5
    up = ((new.high - new.value) ** 2 + (old.value - old.low) ** 2) ** 0.5
    return Interval(value=gap, low=gap - down, high=gap + up, count=min(new.count, old.count))


def parents(run: Run, stage: Stage) -> list[Stage]:
    """The stages that `stage` was made from, named in the manifest by name, folder, checkpoint or hash."""
    found = []
    for parent in stage.parents:
        if is_fresh(stage, parent):
            continue
        for other in run.stages:
            names = {other.name, other.checkpoint, other.sha256}
            named = parent.partition("@")[0]
            if other.number < stage.number and (named in names or other.name in folder_names(parent)):
                found.append(other)
                break
    return found


def is_fresh(stage: Stage, parent: str) -> bool:
    """Whether `parent` is the recipe's own model, not a stage."""
    return parent in FRESH and stage.kind != "eval"


def origin(stage: Stage) -> list[str]:
    """The parents in words, for a reader."""
    return [f"a new {parent}" if is_fresh(stage, parent) else parent for parent in stage.parents]


def folder_names(parent: str) -> set[str]:
    """Stage names that a path such as `stages/02-grpo/checkpoint` speaks of."""
    return {part.partition("-")[2] for part in PurePath(parent).parts if re.match(r"\d+-", part)}


def base_of(run: Run, stage: Stage, results: dict[str, Evaluation]) -> Evaluation | None:
    """The nearest forebear that was evaluated, breadth first; without one the recipe's own model that it began with."""
    queue, seen = [stage], set()
    fresh: list[str] = []
    while queue:
        one = queue.pop(0)
        if one.name in seen:
            continue
        seen.add(one.name)
        fresh += [name for name in one.parents if is_fresh(one, name)]
        best = next((name for name in one.parents if name.endswith("@best") and name in results), None)
        found = [best] if best is not None else [other.name for other in parents(run, one) if other.name in results]
        if found:
            return results[found[0]]
        queue += parents(run, one)
    return next((results[name] for name in fresh if name in results), None)


def suites(run: Run) -> list[Suite]:
    """Every suite of the run, the held-out one first."""
    by_suite: dict[str, dict[str, Evaluation]] = defaultdict(dict)
    for result in run.evaluations:
        by_suite[result.suite][result.model] = result
    stages = {stage.name: stage for stage in run.stages}
    found = []
    for name in sorted(by_suite, key=lambda suite: (suite != "heldout", suite)):
        results = by_suite[name]
        models = []
        for model, result in results.items():
            stage = stages.get(model.partition("@")[0])
            base = base_of(run, stage, results) if stage else None
            base_result = base if base and base.accuracy.count else None
            gain = difference(result.accuracy, base_result.accuracy) if base_result else None
            models.append(Model(stage=stage, result=result, base=base_result, gain=gain))
        panels = tag_panels(models)
        found.append(Suite(name=name, models=models, panels=panels[:MAX_TAGS], tags_left_out=len(panels[MAX_TAGS:])))
    return found


def of_the_chain(run: Run, found: list[Suite]) -> Suite | None:
    """Each model's first result on the run's own held-out problems: of "heldout", then of suites that are stages."""
    stages = {stage.name for stage in run.stages}
    own = [suite for place, suite in enumerate(found) if not place or suite.name in stages]
    models = {model.result.model: model for suite in reversed(own) for model in suite.models}
    return replace(found[0], models=list(models.values())) if found else None


def natural(tag: str) -> list[tuple[int, float, str]]:
    """Sort key by which `terms=10` comes after `terms=9`."""
    parts = re.split(r"(\d+)", tag)
    return [(0, float(part[:300]), "") if part.isascii() and part.isdigit() else (1, 0.0, part) for part in parts]


def tag_panels(models: list[Model]) -> list[TagPanel]:
    """One panel a tag, tags in natural order."""
    tags = sorted({tag for model in models for tag in model.result.by_tag}, key=natural)
    return [
        TagPanel(tag=tag, rows=[(m.result.model, m.result.by_tag[tag]) for m in models if tag in m.result.by_tag])
        for tag in tags
    ]


def suite_label(name: str) -> str:
    """`held-out accuracy`, or the suite's name where it is another."""
    return "held-out accuracy" if name == "heldout" else f"accuracy on {name}"


def policies(suite: Suite) -> list[Model]:
    """Models that GRPO trained, beside those that it began with."""
    return [m for m in suite.models if m.stage and m.stage.kind == "grpo" and m.base]


def grpo_sentence(suite: Suite, signs: Signs, *, several: bool = False) -> str | None:
    """What GRPO did to accuracy, against the model it started from; of several such stages each by its name.
    ``several``: other suites tell of more."""
    trained = policies(suite)
    label, by_name = suite_label(suite.name), several or len(trained) > 1
    said = [
        f"{model.result.model if by_name else 'GRPO'} {_moved(suite, model, 'it' if place else label, signs)}"
        for place, model in enumerate(trained)
    ]
    return ", ".join(said) or None


def _moved(suite: Suite, model: Model, what: str, signs: Signs) -> str:
    assert model.base is not None
    assert model.gain is not None
    apart = 1 if model.gain.low > 0 else -1 if model.gain.high < 0 else 0
    sign = signs.get((suite.name, model.result.model), apart)
    old, new = percent(model.base.accuracy.value), percent(model.result.accuracy.value)
    if sign:
        return f"{'lifted' if sign > 0 else 'lowered'} {what} from {old} to {new}"
    return f"left {what} where it was ({old} before, {new} after: within the noise)"


def student_sentence(suite: Suite, named: list[Model]) -> str | None:
    """What the student keeps of its teacher, at what size, and beside a student of that size without a teacher.

    `named`: whose accuracy the sentence before speaks of; where that is the teacher's alone, "it" is enough here.
    """
    students = [
        m for m in suite.models if m.stage and m.stage.kind == "distill" and m.base and m.base.model not in FRESH
    ]
    if not students or students[-1].base is None or students[-1].base.accuracy.value <= 0:
        return None
    student, teacher = students[-1], students[-1].base
    size, full = student.result.parameters, teacher.parameters
    with_size = f" with {percent(size / full)} of the parameters" if size and full else ""
    kept = student.result.accuracy.value / teacher.accuracy.value
    whose = "it" if [one.result.model for one in named] == [teacher.model] else f"the accuracy of {teacher.model}"
    text = f"the student{with_size} {'reaches' if kept >= 0.9995 else 'keeps'} {percent(kept)} of {whose}"
    control = next(
        (m for m in suite.models if size and m.stage and m.stage.kind == "sft" and m.result.parameters == size), None
    )
    if control is None:
        return text
    own, other = percent(student.result.accuracy.value), percent(control.result.accuracy.value)
    gain = difference(student.result.accuracy, control.result.accuracy)
    versus = "against" if gain.low > 0 else "no better than" if gain.high >= 0 else "worse than"
    return f"{text}: {own}, {versus} {other} for a model of that size without the teacher"


def training_sentence(run: Run) -> str | None:
    """Where no model was evaluated yet: how held-out accuracy moved in the stage that trained last."""
    for stage in reversed(run.stages):
        measured = heldout_points(stage.steps)
        if len(measured) > 1:
            (first, old), (last, new) = measured[0], measured[-1]
            label = "GRPO" if stage.kind == "grpo" else stage.name
            return (
                f"Held-out accuracy during {label}: {percent(old)} at step {first}, {percent(new)} at step {last}"
                " (not evaluated yet)"
            )
    return None


def warnings(run: Run) -> list[tuple[str, str]]:
    """What the health rules said while the run went, and what the evaluations leave out: (where, what)."""
    found = []
    for one in as_list(run.manifest.get("warnings")):
        entry = as_dict(one)
        found.append((f"{words(entry.get('stage'))}, step {whole(entry.get('step'))}", words(entry.get("text")) or ""))
    for result in run.evaluations:
        text = left_out(result)
        if text:
            found.append((f"{result.model} on {result.suite}", text))
    return found


def left_out(result: Evaluation) -> str | None:
    """Which answers an accuracy does not count; None: it counts all."""
    shares = [(result.broken, "a check that broke"), (result.timed_out, "a check that ran past its limit")]
    told = [f"{percent(share)} had {what}" for share, what in shares if share]
    if not told:
        return None
    counted = f"its accuracy is that of the others ({result.accuracy.count:,} problems)"
    return f"{' and '.join(told)}: {counted if result.accuracy.count else 'no answer is verified'}"


def headline(run: Run, found: list[Suite], signs: Signs) -> str | None:
    """The result in one line; None where the run has none yet. ``signs``: see ``verdicts.result_line``."""
    sentences = []
    if found:
        student = student_sentence(found[0], named=policies(found[0]))
        told = {model.result.model for model in found[0].models}
        others = [
            replace(suite, models=[one for one in suite.models if one.result.model not in told]) for suite in found[1:]
        ]
        several = any(map(policies, others))
        policy = [grpo_sentence(suite, signs, several=several) for suite in (found[0], *others)]
        sentences = [sentence for sentence in (*policy, student) if sentence]
    if not sentences and found:
        last = found[0].models[-1].result
        reaches = f"reaches {percent(last.accuracy.value)} {suite_label(found[0].name)}"
        sentences = [f"{last.model} {reaches if last.accuracy.count else 'has no verified answer'}"]
    if not sentences:
        ongoing = training_sentence(run)
        return f"{ongoing}." if ongoing else None
    if any(model.result.broken + model.result.timed_out for model in found[0].models):
        sentences.append("answers without a verdict are left out, see the warnings")
    text = "; ".join(sentences)
    # "the student" begins the line where nothing is said of the policy; a model's name keeps its own case.
    return f"T{text[1:]}." if text.startswith("the ") else f"{text}."
