"""`rlreason eval`: a run's own numbers again, any model on any problems, results that are kept as they are drawn."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from rich.console import Console

from rlreason.config import PolicyConfig, load
from rlreason.errors import UsageError
from rlreason.evaluation import EvalRequest, evaluate_model
from rlreason.job import JobOptions, run_job
from rlreason.policy.policies import fresh_policy
from rlreason.scorer import PoolScorer
from rlreason.stages import drawing
from rlreason.tasks.procedural import make_task
from rlreason.types import EvalReport

SHAPE = """
model_type = "qwen3"
tokenizer = { kind = "bpe", vocab_size = 300 }
model = { hidden_size = 32, num_hidden_layers = 1, num_attention_heads = 2, num_key_value_heads = 1, head_dim = 16, \
intermediate_size = 32 }
"""
#: A run on a file with columns and a system prompt of its own, measured greedily and by draws.
RECIPE = f"""
name = "tiny"
seed = 3
[policy]
{SHAPE}
[data]
train = "own.jsonl"
heldout = "held.jsonl"
system = "Be brief."
columns = {{ prompt = "q", answer = "a", solution = "s" }}
[[stage]]
kind = "sft"
name = "cold"
steps = 30
batch_size = 16
optimizer = {{ lr = 1e-2 }}
[[stage]]
kind = "sft"
name = "more"
steps = 20
batch_size = 16
optimizer = {{ lr = 1e-2 }}
[[stage]]
kind = "eval"
name = "final"
models = ["cold", "more"]
problems = 40
max_tokens = 24
[[stage]]
kind = "eval"
name = "drawn"
models = ["cold"]
problems = 10
samples_per_problem = 4
temperature = 0.7
max_tokens = 24
"""


def rows(first: int, count: int, prompt: str = "q", answer: str = "a", solution: str = "s") -> str:
    found = [{prompt: f"{i % 7}+{i}", answer: str(i % 7), solution: "first"} for i in range(first, first + count)]
    return "".join(json.dumps(row) + "\n" for row in found)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "own.jsonl").write_text(rows(0, 80))
    (folder / "held.jsonl").write_text(rows(1000, 60))
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE)
    run_job(load(recipe), recipe, JobOptions(folder=folder / "run", command=""), Console(quiet=True))
    return folder / "run"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape: Any = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 32,
    }
    folder = tmp_path_factory.mktemp("model")
    config = PolicyConfig(model_type="qwen3", model=shape)
    fresh_policy(config, make_task("arithmetic", {}, 0).alphabet, (), 0, torch.device("cpu")).save(folder)
    return folder


def measured(**fields: Any) -> list[EvalReport]:
    return evaluate_model(EvalRequest(**fields), Console(quiet=True))


def of_stage(run: Path, name: str) -> Any:
    return json.loads((run / "eval" / f"{name}.json").read_text())


def texts(path: Path) -> list[list[str]]:
    return [[one["text"] for one in json.loads(line)["completions"]] for line in path.read_text().splitlines()]


def test_a_run_says_again_what_its_report_says(run: Path, tmp_path: Path) -> None:
    """The same problems, the same system prompt, the same answers: not the suite's."""
    for stage, name in (("cold", "drawn-cold"), ("more", "final-more")):
        (report,) = measured(model=f"{run}:{stage}", out=tmp_path / stage)
        before = of_stage(run, name)
        assert report.accuracy.value == before["accuracy"]["value"]
        assert report.verdicts == before["verdicts"]
        assert report.mean_tokens == before["mean_tokens"]
        assert {str(k): v for k, v in report.pass_at_k.items()} == before["pass_at_k"]
        assert texts(tmp_path / stage / "heldout.completions.jsonl") == texts(
            run / "eval" / f"{name}.completions.jsonl"
        )
    assert 0 < of_stage(run, "final-more")["accuracy"]["value"] < 1  # numbers that could differ
    row = json.loads((tmp_path / "more" / "heldout.json").read_text())
    assert row["options"]["system"] == "Be brief."


def test_without_a_stage_the_last_trained_one(run: Path) -> None:
    (report,) = measured(model=str(run))
    assert report.model == f"{run}:more"
    assert report.accuracy.value == of_stage(run, "final-more")["accuracy"]["value"]


def test_a_run_of_named_sets(tmp_path: Path) -> None:
    """Each set with its own columns and system prompt; an eval stage that names one is said again as it was."""
    for name, first in (("a", 0), ("b", 300), ("c", 600)):
        (tmp_path / f"{name}.jsonl").write_text(rows(first, 24))
    head, _, stages = RECIPE.partition("[[stage]]")
    tables = "".join(
        f'[data.{name}]\npath = "{name}.jsonl"\nsystem = "Set {name}."\n'
        'columns = { prompt = "q", answer = "a", solution = "s" }\n'
        for name in "abc"
    )
    stages = stages.replace('name = "cold"', 'name = "cold"\ndata = "a"').replace(
        'name = "more"', 'name = "more"\ndata = "b"'
    )
    stages = stages.replace('name = "final"', 'name = "final"\ndata = "c"').replace(
        'name = "drawn"', 'name = "drawn"\ndata = "c"'
    )
    (tmp_path / "r.toml").write_text(f"{head.partition('[data]')[0]}{tables}[[stage]]{stages}")
    options = JobOptions(folder=tmp_path / "run", command="")
    run_job(load(tmp_path / "r.toml"), tmp_path / "r.toml", options, Console(quiet=True))
    for stage, name in (("cold", "drawn-cold"), ("more", "final-more")):
        measured(model=f"{tmp_path / 'run'}:{stage}", out=tmp_path / stage)
        written = tmp_path / "run" / "eval" / f"{name}.completions.jsonl"
        assert texts(tmp_path / stage / "heldout.completions.jsonl") == texts(written)


def test_the_checkpoint_on_the_same_file_with_the_same_options_agrees(run: Path) -> None:
    """The third way in, a bare folder with every option given, is the same path; without --system it is another."""
    options: dict[str, Any] = {
        "model": str(run / "stages" / "02-more" / "checkpoint"),
        "data": str(run.parent / "held.jsonl"),
        "problems": 40,
        "max_tokens": 24,
        "prompt_column": "q",
        "answer_column": "a",
    }
    (with_system,) = measured(**options, system="Be brief.")
    before = of_stage(run, "final-more")
    assert with_system.accuracy.value == before["accuracy"]["value"]
    assert with_system.mean_tokens == before["mean_tokens"]


def test_other_data_keeps_the_runs_prompts(run: Path, tmp_path: Path) -> None:
    (report,) = measured(
        model=f"{run}:more", data=str(run.parent / "own.jsonl"), prompt_column="q", answer_column="a", out=tmp_path
    )
    assert report.accuracy.count == 40
    options = json.loads((tmp_path / "heldout.json").read_text())["options"]
    assert options["system"] == "Be brief."
    assert options["data"].endswith("own.jsonl")


def test_other_data_keeps_the_runs_chat_template_options(run: Path, tmp_path: Path) -> None:
    """They change what is asked (thinking or not), so they are said in the first line and in the results."""
    changed = tmp_path / "run"
    shutil.copytree(run, changed)
    recipe = (changed / "recipe.toml").read_text()
    table = "[data.chat_template_kwargs]\n"
    (changed / "recipe.toml").write_text(recipe.replace(table, f"{table}thinking = false\n"))
    own = {"data": str(run.parent / "own.jsonl"), "prompt_column": "q", "answer_column": "a", "problems": 2}
    kept: tuple[dict[str, Any], dict[str, Any]] = ({"thinking": False}, {"thinking": True})
    for place, (options, expected) in enumerate(
        (({}, kept[0]), ({"chat_template_kwargs": kept[1]}, kept[1]), ({"chat_template_kwargs": {}}, {}))
    ):
        said, out = io.StringIO(), tmp_path / str(place)
        request = EvalRequest(model=f"{changed}:more", max_tokens=4, out=out, **own, **options)  # type: ignore[arg-type]
        evaluate_model(request, Console(file=said, width=500))
        assert json.loads((out / "heldout.json").read_text())["options"]["chat_template_kwargs"] == expected
        words = f", chat template with thinking = {json.dumps(expected['thinking'])}" if expected else "question alone"
        assert said.getvalue().splitlines()[0].endswith(words)


def test_options_change_the_draws(run: Path) -> None:
    def drawn(**options: Any) -> EvalReport:
        return measured(model=f"{run}:cold", problems=10, samples=4, **options)[0]

    same = drawn(temperature=0.7)
    assert same.mean_tokens == of_stage(run, "drawn-cold")["mean_tokens"]
    others = [drawn(temperature=1.5), drawn(temperature=0.7, seed=9), drawn(temperature=0.7, top_p=0.3)]
    others.append(drawn(temperature=0.7, top_k=1))
    assert all(one.mean_tokens != same.mean_tokens or one.verdicts != same.verdicts for one in others)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "{run}:coldd"}, "did you mean 'cold'"),
        ({"model": "{run}:final"}, "no training stage 'final'; it has: cold, more"),
        ({"model": "{run}", "prompt_column": "q"}, "--prompt-column says how --data is read"),
        ({"model": "{run}", "samples": 4, "temperature": 0.0}, "all 4 samples are equal"),
        ({"model": "{run}", "top_p": 1.5}, "top_p"),
        ({"model": "{model}", "suites": ("arithmetics",)}, "did you mean 'arithmetic'"),
        ({"model": "{model}"}, "give --data"),
        ({"model": "{empty}", "suites": ("arithmetic",)}, "neither a run directory"),
        ({"model": "no/such/folder", "suites": ("arithmetic",)}, "there is no such folder"),
        ({"model": "qwen", "suites": ("arithmetic",)}, "there is no such folder"),
        ({"model": "{model}", "suites": ("arithmetic",), "out": Path("/proc/nothing")}, "--out /proc/nothing"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_loaded(
    run: Path, model: Path, tmp_path: Path, fields: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlreason.evaluation.run._measure", lambda *_: pytest.fail("a model was loaded"))
    place = fields["model"].format(run=run, model=model, empty=tmp_path)
    with pytest.raises(UsageError, match=message):
        measured(**{**fields, "model": place})


def test_own_columns_and_the_message_names_the_option(model: Path, tmp_path: Path) -> None:
    (tmp_path / "verl.jsonl").write_text(rows(0, 7, prompt="ask", answer="gold"))
    options: dict[str, Any] = {"model": str(model), "data": str(tmp_path / "verl.jsonl"), "max_tokens": 4}
    with pytest.raises(UsageError, match="--prompt-column"):
        measured(**options)
    with pytest.raises(UsageError, match="--answer-column"):
        measured(**options, prompt_column="ask")
    (report,) = measured(**options, prompt_column="ask", answer_column="gold")
    assert report.accuracy.count == 7


def test_a_suite_is_printed_and_written_when_it_is_done(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first suite's results are there although the second fails."""
    (tmp_path / "bad.jsonl").write_text(rows(0, 3, prompt="prompt", answer="answer"))
    screen = io.StringIO()
    out = tmp_path / "out"
    request = EvalRequest(
        model=str(model),
        suites=("arithmetic", "heldout"),
        data=str(tmp_path / "bad.jsonl"),
        problems=20,
        samples=4,
        max_tokens=8,
        out=out,
    )

    class Broken(RuntimeError):
        pass

    def write(path: Path, text: str) -> None:
        if path.name.startswith("heldout"):
            raise Broken
        path.write_text(text)

    monkeypatch.setattr("rlreason.evaluation.results.atomic.write_text", write)
    with pytest.raises(Broken):
        evaluate_model(request, Console(file=screen, width=200))
    shown = screen.getvalue().splitlines()
    assert shown[1].startswith("arithmetic: 0.0% [0.0%,")
    assert "of 20 problems" in shown[1]
    row = json.loads((out / "arithmetic.json").read_text())
    assert row["accuracy"]["low"] == 0.0
    assert set(row["pass_at_k"]) == {"1", "2", "4"}
    assert sum(row["verdicts"].values()) == 80
    assert len(texts(out / "arithmetic.completions.jsonl")) == 20
    assert not (out / "heldout.json").exists()


def test_what_was_drawn_before_a_break_is_not_drawn_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    draw = drawing.draw_groups

    def counting(sampler: Any, problems: Any, params: Any, *, done: Any) -> Iterator[Any]:
        asked.append(len(problems) - len(done))
        for number, group in enumerate(draw(sampler, problems, params, done=done)):
            if number == 15 and len(asked) == 1:
                raise KeyboardInterrupt
            yield group

    submit = PoolScorer.submit

    def scored_at_once(self: PoolScorer, group: Any, *together: Any, **how: Any) -> Any:
        answer = submit(self, group, *together, **how)
        answer.result()
        return answer

    monkeypatch.setattr(drawing, "draw_groups", counting)
    monkeypatch.setattr(PoolScorer, "submit", scored_at_once)
    with pytest.raises(KeyboardInterrupt):
        measured(model=f"{run}:more", out=tmp_path)
    (report,) = measured(model=f"{run}:more", out=tmp_path)
    assert asked[0] == 40
    assert asked[1] == 25
    assert report.accuracy.value == of_stage(run, "final-more")["accuracy"]["value"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heldout.completions.jsonl", "heldout.json"]
    measured(model=f"{run}:more", out=tmp_path, max_tokens=4)  # other options take nothing of it
    assert asked[2] == 40


class _Server(BaseHTTPRequestHandler):
    """Answers every chat with \\boxed{1}."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "judge-7b"
        turn = {"role": "assistant", "content": "\\boxed{1}"}
        answer = {"choices": [{"message": turn, "finish_reason": "stop"}], "usage": {"completion_tokens": 3}}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_is_measured_like_any_model(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(rows(0, 14, prompt="prompt", answer="answer"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        (report,) = measured(model="judge-7b", url=url, data=str(tmp_path / "p.jsonl"), workers=2)
    finally:
        server.shutdown()
        server.server_close()
    assert report.accuracy.value == 2 / 14  # the answers are i % 7
    assert report.mean_tokens == 3
