"""Which way of teaching a small student does most for a budget of tokens: the reduced plan of docs/distill.md.

    python bench/distill/experiment.py OUT                # three seeds; hours; killed, it goes on where it was, in
                                                          # another OUT with what results/experiment.json has
    python bench/distill/experiment.py OUT --smoke        # everything once at a size of a minute; proves nothing

For each seed: a teacher W (the GRPO snapshot whose sampled accuracy first passes 70 %), a student's start S0 (SFT at a
constant learning rate, stopped at 40 % sampled accuracy), and from S0 the arms of ``ARMS``, each stopped at the first
saved step at which it has run the budget of response tokens. Learning rates are the best of three on seed 100 by
problems that nothing else uses. Measured are greedy answers to 1,000 held-out problems, the same for all.

The four claims (claims.py) were fixed before the first run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "bench"))
from claims import judged, table  # noqa: E402
from documents import replace_block  # noqa: E402

from rlreason.config import load  # noqa: E402
from rlreason.data.prompts import PromptFormat  # noqa: E402
from rlreason.inputs import RecipeFiles  # noqa: E402
from rlreason.policy.policies import load_policy  # noqa: E402
from rlreason.recipe_data import RecipeData  # noqa: E402
from rlreason.rewards.registry import resolve_verifier  # noqa: E402
from rlreason.run.manifest import describe_hardware  # noqa: E402
from rlreason.sampler.groups import draw_groups  # noqa: E402
from rlreason.sampler.open import inline_sampler  # noqa: E402
from rlreason.types import Completion, Problem, RewardResult, SamplingParams, Verdict  # noqa: E402

RESULTS = Path(__file__).with_name("results") / "experiment.json"
QUICKSTART = ROOT / "recipes" / "quickstart"
TUNING_SEED = 100
#: (Arm, learning rate) -> (checkpoint, response tokens).
Places = dict[tuple[str, float], tuple[Path, int]]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything."""

    budget: int = 1_100_000
    problems: int = 64
    #: Of an arm at first, and how many more it is given until it has run its budget.
    steps: int = 150
    more: int = 20
    teacher_steps: int = 120
    sft_steps: int = 300
    #: Of the student's start, at most: it is a third of the teacher's size and learns slower.
    start_steps: int = 600
    draws: int = 8000
    heldout: int = 1000
    sampled: int = 250
    every: int = 10
    enough: float = 0.4
    good: float = 0.7
    shape: str = ""


FULL = Size()
SMOKE = Size(
    budget=400, problems=12, steps=4, more=2, teacher_steps=2,
    sft_steps=40, start_steps=40, draws=32, heldout=12, sampled=4,
    every=2, enough=0.0, good=0.0,
    shape="hidden_size = 32\nnum_hidden_layers = 1\nhead_dim = 16\nintermediate_size = 48\n",
)  # fmt: skip
HEAD = """
name = "{name}"
seed = {seed}
[data]
train = "arithmetic"
options = {{ min_terms = 3, max_terms = 6, max_total = 20, negatives = false, mental_steps = 0.35 }}
[reward]
accuracy = 1.0
format = 0.1
[sampler]
max_rows = 256
[trainer]
save_every = {every}
keep_checkpoints = 1000
[policy]
{policy}
[student]
{student}
"""
DRAWN = (
    "steps = {steps}\nproblems_per_step = {problems}\nsamples_per_problem = 4\nmax_tokens = 64\nfirst_problem = 2000\n"
)
#: What the arms of given rows learn: the teacher's draws, once a seed.
DRAWS = """
[[stage]]
kind = "reject"
name = "traces"
model = "policy"
first_problem = 60000
problems = {draws}
max_tokens = 64
filters = {{ near_duplicate = 1 }}
"""
LEARN = "optimizer = {{ lr = {lr:g}, betas = [0.9, 0.99], warmup_steps = 5 }}\n"
STUDY = '[[stage]]\nkind = "distill"\nname = "{name}"\nwhich = "{which}"\nsteps = {steps}\nbatch_size = 256\n' + LEARN
OPD = '[[stage]]\nkind = "opd"\nname = "arm"\nmodel = "student"\n' + DRAWN + LEARN
#: Arms of given rows -> (which of them, the middle of the three learning rates).
STUDIES: dict[str, tuple[str, float]] = {"1 verified": ("kept", 1e-3), "2 unfiltered": ("all", 1e-3)}
#: The others -> (tables and stages, the middle of the three learning rates). {w}: the teacher's folder.
ARMS: dict[str, tuple[str, float]] = {
    "4 grpo": (
        '[[stage]]\nkind = "grpo"\nname = "arm"\nmodel = "student"\nobjective = {{ preset = "dapo" }}\n'
        + DRAWN + LEARN, 3e-4,
    ),
    "5 opd": ('[teacher.w]\npath = "{w}"\n' + OPD, 1e-3),
    "6 sampled": (
        '[teacher.w]\npath = "{w}"\nwhere = "worker"\npayload = "sampled"\n'
        + OPD.replace('model = "student"', 'model = "student"\nsupport = "sampled"'), 3e-4,
    ),
    "8 fixed": (OPD.replace('model = "student"', 'model = "student"\npreset = "fixed_negative"'), 3e-4),
}  # fmt: skip
MIDDLES = {name: middle for name, (_, middle) in (STUDIES | ARMS).items()}


def beside(folder: Path, ending: str) -> Path:
    """Not with_suffix: "4-grpo-0.0003" has none."""
    return folder.parent / f"{folder.name}.{ending}"


def run(folder: Path, text: str) -> None:
    """A recipe to its end, whether it was begun before or not."""
    recipe = beside(folder, "toml")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "rlreason", "run", str(recipe), "--out", str(folder)]
    done = subprocess.run([*command, *(["--resume"] if folder.exists() else [])], check=False)
    if done.returncode:
        raise SystemExit(f"{recipe}: exit code {done.returncode}")


def rows(folder: Path, stage: str) -> list[dict[str, Any]]:
    """A stage's lines of metrics."""
    (path,) = folder.glob(f"stages/*-{stage}/metrics.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def saved(folder: Path, stage: str) -> dict[int, Path]:
    """Steps done -> the checkpoint that was kept then."""
    found = folder.glob(f"stages/*-{stage}/checkpoints/step-*")
    return {int(one.name.removeprefix("step-")): one for one in sorted(found)}


def reached(folder: Path, stage: str, budget: int) -> tuple[Path, int] | None:
    """The first saved step at which the budget was run, and its response tokens; None: the stage was too short for it.

    Tokens of groups of equal rewards count: that GRPO does not compute them, as their gradient is 0, is a matter of
    seconds. Counted without them, it was run for three to seven times as many steps as the others.
    """
    checkpoints, tokens = saved(folder, stage), 0
    for number, row in enumerate(rows(folder, stage), start=1):
        tokens += int(row["tokens"])
        if tokens >= budget and number in checkpoints:
            return checkpoints[number], tokens
    return None


@dataclass(frozen=True)
class Measure:
    """Problems that nobody trains on: the first are for the verdict, those behind them choose learning rates."""

    verdict: list[Problem]
    tuning: list[Problem]

    def answers(self, folder: Path, problems: Sequence[Problem], samples: int = 1) -> list[list[bool]]:
        """Whether each answer is right: one greedy, or several at temperature 1."""
        policy = load_policy(folder, torch.float32, torch.device("cpu"))
        heat = 0.0 if samples == 1 else 1.0
        params = SamplingParams(samples_per_problem=samples, temperature=heat, max_tokens=64, stream="measured", seed=9)
        groups = draw_groups(inline_sampler(policy, PromptFormat()), list(problems), params)
        found = {one.problem.id: [right(one.problem, each) for each in one.completions_G] for one in groups}
        return [found[one.id] for one in problems]


def right(problem: Problem, completion: Completion) -> bool:
    """What the task's verifier says."""
    result = resolve_verifier(problem.verifier).function(problem, completion)
    return result.verdict is Verdict.CORRECT if isinstance(result, RewardResult) else bool(result)


def share(answers: list[list[bool]]) -> float:
    """Of all answers."""
    return statistics.fmean(one for each in answers for one in each)


def measures(out: Path, size: Size) -> Measure:
    """The same problems for every arm and seed."""
    path = out / "problems.toml"
    text = HEAD.format(
        name="problems", seed=12345, every=0, policy=model(size, moe=True), student=model(size, moe=False)
    )
    stage = '[[stage]]\nkind = "sft"\nname = "none"\nmodel = "student"\nsteps = 1\nbatch_size = 1\ndemonstrations = 1\n'
    path.write_text(text.replace("keep_checkpoints = 1000", "") + stage, encoding="utf-8")
    recipe = load(path)
    source = RecipeData(recipe=recipe, base=out, files=RecipeFiles(base=out)).read().of("none")
    found = list(source.heldout(size.heldout + 2 * size.sampled))
    return Measure(verdict=found[: size.heldout], tuning=found[size.heldout :])


def model(size: Size, *, moe: bool) -> str:
    """The quickstart's policy or student, as a recipe has it."""
    shape = size.shape or "hidden_size = 128\nnum_hidden_layers = 3\nhead_dim = 32\nintermediate_size = 256\n"
    experts = "moe_intermediate_size = 128\nnum_experts = 8\nnum_experts_per_tok = 2\nnorm_topk_prob = true\n"
    return (
        f'model_type = "{"qwen3_moe" if moe else "qwen3"}"\n[{"policy" if moe else "student"}.model]\n{shape}'
        "num_attention_heads = 4\nnum_key_value_heads = 2\ntie_word_embeddings = true\nmax_position_embeddings = 256\n"
        f"initializer_range = 0.06\n{experts if moe else ''}"
    )


def prepared(out: Path, seed: int, size: Size, measure: Measure) -> tuple[Path, Path]:
    """(W, S0) of a seed."""
    sft = (
        '[[stage]]\nkind = "sft"\nname = "{name}"\nmodel = "{model}"\ndemonstrations = 2000\nsteps = {steps}\n'
        "batch_size = 128\noptimizer = {{ lr = 3e-3, betas = [0.9, 0.99], warmup_steps = 10 }}\n"
    )
    grpo = '[[stage]]\nkind = "grpo"\nname = "grpo"\nmodel = "cold"\n' + DRAWN + LEARN
    text = HEAD.format(
        name="teacher", seed=seed, every=size.every, policy=model(size, moe=True), student=model(size, moe=False)
    )
    text += sft.format(name="cold", model="policy", steps=size.sft_steps)
    text += grpo.format(steps=size.teacher_steps, problems=size.problems, lr=3e-4)
    text += sft.format(name="start", model="student", steps=size.start_steps)
    run(out / "models", text)
    scored = {number: row["accuracy/train"] for number, row in enumerate(rows(out / "models", "grpo"), start=1)}
    snapshots = saved(out / "models", "grpo")
    w = next((place for step, place in snapshots.items() if scored[step] >= size.good), None)
    s0 = next(
        (
            place
            for place in saved(out / "models", "start").values()
            if share(measure.answers(place, measure.tuning, 4)) >= size.enough
        ),
        None,
    )
    if w is None or s0 is None:
        raise SystemExit(f"seed {seed}: no snapshot of the {'teacher' if w is None else 'student'} is good enough")
    return w, s0


def arms(out: Path, rates: Mapping[str, Sequence[float]], models: tuple[Path, Path], seed: int, size: Size) -> Places:
    """Each arm's checkpoint at the budget, and its tokens, by arm and learning rate."""
    w, s0 = models
    head = HEAD.format(name="arm", seed=seed, every=size.every, policy=f'path = "{w}"', student=f'path = "{s0}"')
    studies = [(name, lr) for name in STUDIES if name in rates for lr in rates[name]]
    folder, names = out / "studies", {one: f"{one[0].split()[1]}{number}" for number, one in enumerate(studies)}

    def learning(steps: Mapping[str, int]) -> str:
        stages = [
            STUDY.format(name=names[one], which=STUDIES[one[0]][0], lr=one[1], steps=steps[names[one]])
            for one in studies
        ]
        return head + DRAWS.format(draws=size.draws) + "".join(stages)

    found: Places = {}
    if studies:
        places = lengthened(folder, list(names.values()), learning, size)
        found = {one: places[name] for one, name in names.items()}
    for name in ARMS:
        for lr in rates.get(name, ()):

            def one_arm(steps: Mapping[str, int], text: str = ARMS[name][0], lr: float = lr) -> str:
                return head + text.format(w=w, steps=steps["arm"], problems=size.problems, lr=lr)

            folder = out / f"{name.replace(' ', '-')}-{lr:g}"
            found[name, lr] = lengthened(folder, ["arm"], one_arm, size)["arm"]
    return found


def lengthened(
    folder: Path, stages: Sequence[str], text: Callable[[Mapping[str, int]], str], size: Size
) -> dict[str, tuple[Path, int]]:
    """Run the recipe ``text(steps of each stage)``, and give its stages more steps until each has run the budget.
    Learning rates are constant, so that it is the same as if they had been given them at first."""
    note = beside(folder, "steps.json")
    steps = json.loads(note.read_text(encoding="utf-8")) if note.exists() else dict.fromkeys(stages, size.steps)
    while True:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(steps), encoding="utf-8")
        run(folder, text(steps))
        found = {stage: reached(folder, stage, size.budget) for stage in stages}
        short = [stage for stage, place in found.items() if place is None]
        if not short:
            return {stage: place for stage, place in found.items() if place is not None}
        steps |= {stage: steps[stage] + size.more for stage in short}


def tuned(out: Path, size: Size, measure: Measure, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Arm -> learning rate -> greedy accuracy on the tuning problems, at a third of the budget."""
    third = replace(size, budget=size.budget // 3, steps=max(size.every, size.steps // 3 // size.every * size.every))
    place = out / f"seed-{TUNING_SEED}"
    models = prepared(place, TUNING_SEED, size, measure)
    rates = {name: [MIDDLES[name] * factor for factor in (1 / 3, 1.0, 3.0)] for name in names}
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for (name, lr), (checkpoint, _) in arms(place, rates, models, TUNING_SEED, third).items():
        found[name][f"{lr:g}"] = share(measure.answers(checkpoint, measure.tuning))
    return found


def unmoved(out: Path, s0: Path, seed: int, size: Size, measure: Measure) -> float:
    """Share of greedy answers that five steps with the start as teacher change: 0, or the stage is wrong."""
    twin = out / "twin"
    shutil.copytree(s0, twin, dirs_exist_ok=True)
    text = HEAD.format(name="arm", seed=seed, every=0, policy=f'path = "{s0}"', student=f'path = "{s0}"')
    text = text.replace("keep_checkpoints = 1000", "") + f'[teacher.same]\npath = "{twin}"\n'
    run(out / "11-same", text + OPD.format(steps=5, problems=size.problems, lr=1e-6))
    (after,) = (out / "11-same").glob("stages/*-arm/checkpoint")
    pairs = zip(measure.answers(s0, measure.verdict), measure.answers(after, measure.verdict), strict=True)
    return statistics.fmean(one != other for one, other in pairs)


def operations(checkpoint: Path) -> float:
    """Of the whole stage that made it (at most ``Size.more`` steps past the budget) and of the teacher's draws that it
    learnt from: sampling, training, scoring. Not of what made the teacher and the start."""
    folder, stage = checkpoint.parents[3], checkpoint.parents[1].name.partition("-")[2]
    entries = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["stages"]
    works = [one["work"] for one in entries if one["name"] in (stage, "traces")]
    return sum(float(one[f"{part}_flops"]) for one in works for part in ("sampling", "training", "scoring"))


def main() -> None:
    """Run, measure, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the runs and of what was measured so far")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--smoke", action="store_true", help="everything once, tiny")
    options = parser.parse_args()
    size, out = (SMOKE if options.smoke else FULL), options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    known = next((one for one in ((path,) if options.smoke else (path, RESULTS)) if one.exists()), None)
    document = {"tuning": {}, "seeds": {}} if known is None else json.loads(known.read_text(encoding="utf-8"))
    measure = measures(out, size)
    untuned = [name for name in (["1 verified"] if options.smoke else MIDDLES) if name not in document["tuning"]]
    if untuned:
        document["tuning"] |= tuned(out, size, measure, untuned)
        path.write_text(json.dumps(document), encoding="utf-8")
    for seed in options.seeds:
        if str(seed) in document["seeds"]:
            continue
        place = out / f"seed-{seed}"
        w, s0 = prepared(place, seed, size, measure)
        places = {"0 start": (s0, 0), "teacher W": (w, 0)}
        rates = {}
        for name, middle in MIDDLES.items():
            tried = document["tuning"].get(name, {f"{middle:g}": 0.0})
            rates[name] = [float(max(tried, key=lambda lr: tried[lr]))]
        taught = {name: one for (name, _), one in arms(place, rates, (w, s0), seed, size).items()}
        places |= taught
        document["seeds"][str(seed)] = {
            "greedy": {
                name: "".join(str(int(one[0])) for one in measure.answers(one, measure.verdict))
                for name, (one, _) in places.items()
            },
            "sampled": {
                name: share(measure.answers(one, measure.verdict[: size.sampled], 8))
                for name, (one, _) in places.items()
            },
            "tokens": {name: tokens for name, (_, tokens) in places.items()},
            "operations": {name: operations(one) for name, (one, _) in taught.items()},
            "same teacher moved": unmoved(place, s0, seed, size, measure),
        }
        path.write_text(json.dumps(document), encoding="utf-8")
    document["claims"] = judged({seed: one["greedy"] for seed, one in document["seeds"].items()})
    document["hardware"] = describe_hardware([]).model_dump()
    path.write_text(json.dumps(document), encoding="utf-8")
    print(table(document))
    if not options.smoke and options.seeds == [0, 1, 2]:
        RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        replace_block(ROOT / "docs" / "distill.md", "experiment", table(document))


if __name__ == "__main__":
    main()
