"""What `rlreason plan` says of an opd stage: its formula, its teachers, and what they send."""

from __future__ import annotations

from rlreason.config import OpdStage, Recipe, TeacherConfig


def opd_lines(stage: OpdStage, recipe: Recipe) -> list[str]:
    """The stage in a few lines."""
    rows = stage.problems_per_step * stage.samples_per_problem
    lines = [_formula(stage)]
    mixed = "" if stage.on_policy == 1 else f", of which {1 - stage.on_policy:.0%} are rows of the teacher's traces"
    lines.append(
        f"{stage.steps} steps x {stage.problems_per_step} problems x {stage.samples_per_problem} completions = "
        f"{rows * stage.steps:,} rows of at most {stage.max_tokens} tokens{mixed}; temperature {stage.temperature:g}"
    )
    for name in stage.teachers(recipe.teacher):
        keys = [key for key, teacher in stage.route.items() if teacher == name]
        routed = f" for {', '.join(keys)}" if keys else ""
        weight = f", weight {stage.weights[name]:g}" if name in stage.weights else ""
        lines.append(f"teacher {name}{routed}: {_said(recipe.teacher[name], stage)}{weight}")
    if stage.reward_weight:
        lines.append(f"+ {stage.reward_weight:g} x {stage.grpo().objective.formula()}, a sum of its own")
    return [*lines, f"lr {stage.optimizer.lr:g} {stage.optimizer.schedule}"]


def _formula(stage: OpdStage) -> str:
    if stage.advantage == "fixed":
        return (
            f"−{stage.value:g} · log p_y of the {stage.lowest:.0%} least probable tokens of each response; no teacher"
        )
    if stage.advantage == "fixed_entropy":
        return f"A = −½ − (H − H_min)/(2(H_max − H_min)) on the {stage.lowest:.0%} least probable tokens; no teacher"
    return f"loss of a token: {stage.spec.formula(stage.k)}"


def _said(table: TeacherConfig, stage: OpdStage) -> str:
    origin = table.model if table.model is not None else table.path
    if table.where == "trainer":
        return f"{origin}, beside the student: nothing is sent"
    sent = {
        "hidden": "4 bytes x its hidden size a token, its head once",
        "topk": f"{8 * stage.k + 8:,} bytes a token (its {stage.k} most probable words, the rest, the drawn token)",
        "sampled": "4 bytes a token (the drawn token)",
    }
    place = "behind vLLM" if table.where == "vllm" else "elsewhere"
    return f"{origin}, {place}; it sends {sent[table.payload]}"
