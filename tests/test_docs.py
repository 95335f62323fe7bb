"""What README and docs show is run: every command, every Python block, every piece of TOML.

Commands run on tiny data in a folder of their own. `rlreason run` is run as `rlreason plan` with the same recipe and
overrides, which checks all of them and trains nothing: the recipes shown take minutes, or GPUs. The recipes that a
laptop runs are run too, all their stages, cut down to a step each (with vLLM or W&B: `make test-all`). What is not run
stands in the tables below, with the reason.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rlreason import extensions
from rlreason.cli import app
from rlreason.config import Recipe, load
from rlreason.config.load import locate
from rlreason.job import JobOptions, run_job
from rlreason.rewards.registry import ENTRY_POINT_GROUP

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").glob("*/README.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

#: Shell lines that are no commands of ours: how they begin -> why they are not run.
OTHER_TOOLS = {
    "pip install": "installs packages",
    "python -m venv": "makes an environment",
    ".venv/bin/pip": "installs packages",
    "make": "quickstart and test are CI's own jobs; the others install packages",
    "git": "needs a server",
    "ray start": "starts a cluster on other hosts",
    "vllm serve": "needs a server's model",
    "python bench/": "benchmarks take minutes; tests/objective/test_bench_gpu.py and their --help are run elsewhere",
    "python -m bench": "benchmarks take minutes",
    "export": "sets a variable",
    "tensorboard": "a server that runs until it is stopped",
    "wandb": "needs a server",
    "trackio": "a server that runs until it is stopped",
    "zcat": "reads what a run wrote",
    "tail": "reads what a run wrote",
    "sbatch": "needs a batch system",
    "echo": "of the shell",
    "cat": "of the shell",
    "kill": "of the shell",
}
#: Pages whose Python and console blocks have a test of their own, which compares what they print.
OWN_TESTS = {"docs/data.md": "tests/data/test_docs.py", "docs/sandbox.md": "tests/rewards/test_sandbox_docs.py"}
#: Words in capitals stand for something: such a line is a synopsis, and its command and options must exist.
PLACEHOLDER = re.compile(r"\[|\]|…|\.\.\.|<|(?<![\w-])[A-Z][A-Z_]*(?![\w-])")

TINY = """
name = "q"
[policy]
model_type = "qwen3"
tokenizer = { kind = "bpe", vocab_size = 300 }
model = { hidden_size = 32, num_hidden_layers = 1, num_attention_heads = 2, num_key_value_heads = 1, head_dim = 16, \
intermediate_size = 32 }
[student]
model_type = "qwen3"
tokenizer = { kind = "bpe", vocab_size = 300 }
model = { hidden_size = 32, num_hidden_layers = 1, num_attention_heads = 2, num_key_value_heads = 1, head_dim = 16, \
intermediate_size = 32 }
[data]
train = "rows.jsonl"
heldout = "held.jsonl"
verifier = "right.py:right"
[reward]
"right.py:vowels" = 1.0
[[stage]]
kind = "sft"
name = "cold_start"
steps = 20
batch_size = 8
optimizer = { lr = 1e-2 }
[[stage]]
kind = "grpo"
name = "grpo"
steps = 2
problems_per_step = 4
max_tokens = 24
[[stage]]
kind = "reject"
name = "traces"
problems = 16
max_tokens = 32
[[stage]]
kind = "distill"
name = "distilled"
steps = 2
batch_size = 4
[[stage]]
kind = "eval"
name = "final"
models = ["grpo", "distilled"]
problems = 8
max_tokens = 16
"""
RIGHT = """
def right(problem, completion):
    return 1.0
def vowels(problem, completion):
    return sum(letter in "aeiou" for letter in completion.text) / max(1, len(completion.text))
"""


def rows(count: int, first: int = 0, **names: str) -> str:
    prompt, answer = names.get("prompt", "prompt"), names.get("answer", "answer")
    found = [{prompt: f"{i}+1=", answer: str(i + 1), "solution": "one more"} for i in range(first, first + count)]
    return "".join(json.dumps(row) + "\n" for row in found)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages speak of: runs, data files, a model."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "rows.jsonl").write_text(rows(24))
    (folder / "held.jsonl").write_text(rows(12, 100))
    (folder / "right.py").write_text(RIGHT)
    for page in PAGES:
        for language, text in blocks(page):
            if language == "python" and file_of(text):
                (folder / file_of(text)).write_text(text)
    (folder / "recipe.toml").write_text(TINY)
    recipe = load(folder / "recipe.toml")
    run_job(recipe, folder / "recipe.toml", JobOptions(folder=folder / "runs" / "q", command=""), Console(quiet=True))
    for name in ("p", "a", "b", "quickstart"):
        shutil.copytree(folder / "runs" / "q", folder / "runs" / name)
    # It answers with numbers that it has seen, now and then the right one: what a script trains it on tells it apart.
    checkpoint = folder / "runs" / "q" / "stages" / "01-cold_start" / "checkpoint"
    shutil.copytree(checkpoint, folder / "HuggingFaceTB" / "SmolLM2-135M-Instruct")
    shutil.copytree(checkpoint, folder / "model")
    shutil.copytree(checkpoint, folder / "SmolLM2-4x135M")  # what recipes/smollm2_moe upcycles
    (folder / "own.jsonl").write_text(rows(5, prompt="question", answer="gold"))
    for part, first in (("train", 0), ("test", 500)):
        hub = [
            {"prompt": f"{i}?", "answer": str(i), "solution": f"It is.\n#### {i}"} for i in range(first, first + 400)
        ]
        (folder / f"gsm8k_{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in hub))
    for number, name in enumerate(("math", "general", "cold_start", "aime24")):  # the files of recipes/r1
        (folder / f"{name}.jsonl").write_text(rows(30, 1000 * (number + 1)))
    program = {"prompt": "Print 1.", "tests": {"type": "stdin", "cases": [{"input": "", "output": "1"}]}}
    (folder / "code.jsonl").write_text(json.dumps(program) + "\n")
    answer = {"id": 1, "response": "\\boxed{6}", "reference": "6"}
    (folder / "in.jsonl").write_text(json.dumps(answer) + "\n")
    labelled = [answer | {"correct": True}, answer | {"reference": "7", "correct": False}]
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    return folder


@pytest.fixture
def there(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return workplace


def file_of(text: str) -> str:
    """The file that a block is, where its first line says so: ``# polite.py``; else ""."""
    first = text.splitlines()[0]
    return first.removeprefix("# ") if re.fullmatch(r"# \w+\.py", first) else ""


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of the page's blocks."""
    yield from FENCE.findall(page.read_text(encoding="utf-8"))


def shell_lines(page: Path) -> list[str]:
    """Commands of the page: of its shell blocks, of indented blocks, and ours in running text."""
    found: list[str] = []
    name = page.relative_to(ROOT).as_posix()
    for language, text in blocks(page) if name not in OWN_TESTS else ():
        if language in ("", "sh", "bash", "shell", "console"):
            joined = text.replace("\\\n", " ")
            lines = [
                line.removeprefix("$ ") for line in joined.splitlines() if language != "console" or line[:2] == "$ "
            ]
            found += [re.split(r" #| > ", line)[0].strip() for line in lines]
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    found += [line.strip() for line in prose.splitlines() if line.startswith("    rlreason ")]
    found += [" ".join(one.split()) for one in re.findall(r"`(rlreason [^`>]+)", prose)]
    return [line for line in dict.fromkeys(found) if line and not line.startswith("#")]


def _without(arguments: list[str], *options: str) -> list[str]:
    """``arguments`` without these options and their values."""
    kept, skip = [], False
    for one in arguments:
        if not skip and one not in options:
            kept.append(one)
        skip = one in options
    return kept


COMMANDS = [
    pytest.param(line, id=f"{page.relative_to(ROOT)}: {line[:70]}")
    for page in PAGES
    for line in shell_lines(page)
    if line.startswith("rlreason ")
]


def invoke(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (arguments, done.exception, done.output[-500:])


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(there: Path, line: str) -> None:
    arguments = shlex.split(line)[1:]
    if PLACEHOLDER.search(line) or (
        len(arguments) == 1 and arguments[0] not in {"recipes", "doctor", "suites", "schema"}
    ):
        words = arguments[:2] if arguments[0] == "recipes" and len(arguments) > 1 else arguments[:1]
        for command in words[0].split("|") if len(words) == 1 else [" ".join(words).split("|")[0]]:
            help_text = CliRunner().invoke(app, [*command.split()[:1], "--help"])
            assert help_text.exit_code == 0, f"no command {command!r}"
            for option in re.findall(r"--[a-z][a-z-]+", line):
                assert option in help_text.output.replace("\n", ""), f"{command} has no {option}"
        return
    if arguments[0] == "run":
        arguments = ["plan", *[one for one in _without(arguments[1:], "--out", "--replay") if one != "--resume"]]
    if arguments[:2] == ["plan", "smollm2_words"]:  # its model is a tiny one here
        arguments += ["policy.model={}", "policy.model_type=qwen3"]
    if arguments[0] == "resume":
        arguments = _tiny_steps(arguments)
    if arguments[:2] == ["recipes", "copy"]:
        Path(arguments[-1]).unlink(missing_ok=True)
    if arguments[0] == "upcycle":
        shutil.rmtree(arguments[2], ignore_errors=True)
    invoke(arguments)


RUNS = {
    " ".join(re.sub(r"seed=\d+", "", one) for one in _without(line.split()[2:], "--out", "--replay")).strip(): line
    for page in PAGES
    for line in shell_lines(page)
    if re.match(r"rlreason run (quickstart|quickstart_code|gsm8k_tiny)( |$)", line)
}
#: What makes a step of a stage small. Whatever is drawn counts as right, or nothing would be left to distil.
SMALL = {
    "steps": 1,
    "batch_size": 2,
    "problems_per_step": 2,
    "samples_per_problem": 4,
    "problems": 2,
    "demonstrations": 4,
    "eval_problems": 2,
    "max_tokens": 32,
    "eval_max_tokens": 8,
    "first_problem": 0,
}
SMALL_DATA = (
    "data.train=rows.jsonl",
    "data.heldout=held.jsonl",
    "data.options={}",
    "data.overlong_prompts=drop",
    "data.columns={}",
    "data.answer_after=",
    "data.verifier=right.py:right",
    'reward={"right.py:vowels"=1.0}',
    "policy.tokenizer={kind='bpe',vocab_size=300}",
    "student.tokenizer={kind='bpe',vocab_size=300}",
)


@pytest.mark.parametrize(
    "line",
    [pytest.param(one, marks=pytest.mark.slow) if re.search("vllm|wandb", one) else one for one in RUNS.values()],
)
def test_recipes_for_a_laptop_run(there: Path, tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages of the shipped recipe, with the line's own overrides, one step each."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe, *overrides = _without(shlex.split(line)[2:], "--out", "--replay")
    for stage in tomllib.loads(locate(recipe).read_text(encoding="utf-8"))["stage"]:
        small = SMALL | ({"problems": 8, "max_tokens": 100} if stage["kind"] == "reject" else {})  # some end by chance
        overrides += [f"stage.{stage['name']}.{key}={value}" for key, value in small.items() if key in stage]
    invoke(["run", recipe, *SMALL_DATA, *overrides, "--out", str(tmp_path / "run")])
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert {stage["status"] for stage in manifest["stages"]} == {"done"}
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def _tiny_steps(arguments: list[str]) -> list[str]:
    """A resumed stage is given three steps, not hundreds."""
    return [re.sub(r"steps=\d+", "steps=3", one) for one in arguments]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_other_shell_lines_are_known(page: Path) -> None:
    lines = [line for line in shell_lines(page) if not line.startswith("rlreason ")]
    shell = [line for line in lines if re.match(r"[a-z./]+ ", line)]
    text = {block for language, block in blocks(page) if language == ""}
    unknown = [line for line in shell if not line.startswith(tuple(OTHER_TOOLS))]
    drawings = [line for line in unknown if any(line in " ".join(block.split()) or line in block for block in text)]
    assert not [line for line in unknown if line not in drawings or line.startswith(("python ", "pip ", "cd "))]


@pytest.mark.parametrize(
    "page",
    [one for one in PAGES if any(language == "python" for language, _ in blocks(one))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_python_blocks(there: Path, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page's blocks, in order, as one script. One that begins with a file's name is that file."""
    if page.relative_to(ROOT).as_posix() in OWN_TESTS:
        pytest.skip("has a test of its own")
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, f"{page.name}", "exec"), names)
    if "result" in names:
        assert names["result"].metrics


def toml_blocks() -> Iterator[Any]:
    """TOML of the pages; a block that says a key several times shows alternatives, one a line."""
    for page in PAGES:
        for number, (language, text) in enumerate(blocks(page)):
            keys = re.findall(r"^(\w+) =", text, re.MULTILINE)
            alternatives = text.splitlines() if len(set(keys)) == 1 < len(keys) else [text]
            ours = language == "toml" and not text.startswith("# pyproject.toml")
            for one in alternatives if ours else ():
                yield pytest.param(one, id=f"{page.relative_to(ROOT)}, block {number}: {one.strip()[:30]}")


@pytest.mark.parametrize("text", toml_blocks())
def test_toml_blocks(text: str) -> None:
    """A piece of a recipe, laid over one that works, is one that works: its keys exist and its values are allowed."""
    given = tomllib.loads(text)
    table = tomllib.loads(locate("quickstart").read_text(encoding="utf-8"))
    stages = given.pop("stage", [])
    for key, value in given.items():
        if key in Recipe.model_fields:
            table[key] = {**table[key], **value} if isinstance(table.get(key), dict) and key != "reward" else value
        else:  # keys of a stage, such as objective
            table["stage"][1][key] = value
    for stage in stages:
        like = next((one for one in table["stage"] if one["kind"] == stage.get("kind", "grpo")), None)
        assert like is not None
        like.update({key: value for key, value in stage.items() if key != "name"})
    Recipe.model_validate(table)


EXTENDING = ROOT / "docs" / "extending.md"


def test_what_extending_shows_runs_together(there: Path, tmp_path: Path) -> None:
    """Its reward, data source, task, health rule and tracker by file in one real run."""
    pieces = [text for language, text in blocks(EXTENDING) if language == "toml" and "pyproject" not in text]
    reward, mine, task, health, logging = pieces
    (there / "extended.toml").write_text(
        TINY[: TINY.index("[data]")]
        + mine
        + task.replace("[data]", "[data.made]").replace("train =", "path =")
        + reward
        + health
        + logging.replace('"tensorboard", ', "")
        + TINY[TINY.index("[[stage]]") : TINY.index('[[stage]]\nkind = "reject"')]
        .replace("steps = 20\n", 'steps = 1\ndata = "mine"\n')
        .replace("problems_per_step", "data = { mine = 0.5, made = 0.5 }\nsamples_per_problem = 2\nproblems_per_step")
        .replace("steps = 2\n", "steps = 1\n")
        .replace("max_tokens = 24", "max_tokens = 4")
    )
    out = tmp_path / "run"
    done = CliRunner().invoke(app, ["run", "extended.toml", "--out", str(out)])
    lines = (out / "lines.txt").read_text().splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["cold_start", "0"], ["grpo", "0"]]
    assert "does the model think?" in done.output
    row = json.loads((out / "stages" / "02-grpo" / "metrics.jsonl").read_text().splitlines()[0])
    assert "reward/polite.py:polite" in row
    prompts = [json.loads(line)["prompt"] for line in (out / "stages" / "02-grpo" / "rollouts.jsonl").open()]
    assert {prompt[-3:] for prompt in prompts} == {"+1=", "*2="}


def test_what_extending_points_to_is_there() -> None:
    """Every file, and every function or class named with it, and the groups of entry points."""
    text = EXTENDING.read_text(encoding="utf-8")
    files = set(re.findall(r"`((?:rlreason|rewards|eval|tests)/[\w/]+\.py)`", text))
    assert len(files) > 25
    assert not [name for name in files if not (ROOT / name).is_file()]
    for names, file in re.findall(r"((?:`\w+`(?:, | and )?)+) (?:in|of) `((?:rlreason|rewards)/[\w/]+\.py)`", text):
        source = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"\b{name}\b", source), (name, file)
    (package,) = [text for language, text in blocks(EXTENDING) if text.startswith("# pyproject.toml")]
    groups = set(tomllib.loads(package)["project"]["entry-points"])
    assert groups == {extensions.TRACKERS, extensions.DATA, extensions.HEALTH, ENTRY_POINT_GROUP}


@pytest.mark.parametrize(
    ("page", "data"),
    [
        ("README.md", "quickstart"),
        ("docs/results/quickstart.md", "quickstart"),
        ("recipes/smollm2_words/README.md", "smollm2_words"),
        ("recipes/r1_smollm2/README.md", "r1_smollm2"),
    ],
)
def test_numbers_of_runs_are_those_of_their_data(page: str, data: str) -> None:
    """One measurement, in docs/results/DATA.json; the pages are made from it (bench/seeds.py --pages)."""
    spec = importlib.util.spec_from_file_location("seeds", ROOT / "bench" / "seeds.py")
    assert spec is not None
    assert spec.loader is not None
    seeds = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeds)
    rows = json.loads((ROOT / "docs" / "results" / f"{data}.json").read_text(encoding="utf-8"))
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- seeds -->" in text
    assert seeds.written(text, rows) == text
    assert percentages_outside(text) == []


def percentages_outside(text: str) -> list[str]:
    """Accuracies with an interval that stand in the text beside the tables."""
    for name in ("seeds", "gains"):
        text = re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", "", text, flags=re.DOTALL)
    return re.findall(r"[0-9.]+ (?:% )?\([0-9.]+–[0-9.]+\)", text)


def test_the_notebook(there: Path) -> None:
    """README's script in a real notebook's kernel: it trains, and its curve comes back."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    (script,) = [text for language, text in blocks(ROOT / "README.md") if language == "python" and "grpo(" in text]
    setup = f"import os, sys; os.chdir({str(there)!r}); sys.path.insert(0, {str(ROOT)!r})"
    cells = [setup, script, "print(len(result.curve('loss')), result.report.exists())"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute()
    last = "".join(output["text"] for output in book.cells[-1].outputs)
    assert last == "20 True\n"
    assert "✓ grpo" in "".join(output["text"] for output in book.cells[1].outputs if output["output_type"] == "stream")
