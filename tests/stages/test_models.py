"""What would end or spoil a stage is said before the run makes its folder."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from rlreason.check import CheckedRecipe, check
from rlreason.config import PolicyConfig, load
from rlreason.data.prompts import PromptFormat
from rlreason.errors import UsageError
from rlreason.job import JobOptions, run_job, with_models
from rlreason.plan.text import describe
from rlreason.policy.loading import load_tokenizer
from rlreason.policy.policies import fresh_policy
from rlreason.run.directory import RunDirectory
from rlreason.run.manifest import fresh
from rlreason.sampler.open import installed
from rlreason.types import Problem

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
LINES = {name: f"{name} = {json.dumps(value)}" for name, value in SHAPE.items()}
RECIPE = """
name = "t"
[policy]
model_type = "qwen3"
tokenizer = {{ kind = "bpe", vocab_size = 300 }}
[policy.model]
{shape}
{policy}
[data]
train = "d.jsonl"
heldout = "h.jsonl"
{data}
{tables}
[[stage]]
kind = "sft"
name = "cold"
steps = 1
batch_size = 2
[[stage]]
kind = "grpo"
name = "rl"
steps = 1
problems_per_step = 2
samples_per_problem = 2
max_tokens = {max_tokens}
{stages}
"""
DISTILL = """
[[stage]]
kind = "reject"
name = "traces"
problems = 2
max_tokens = 8
[[stage]]
kind = "distill"
name = "small"
steps = 1
{distill}
"""
STUDENT = f"""
[student]
model_type = "qwen3"
tokenizer = {{ kind = "bpe", vocab_size = 301 }}
[student.model]
{chr(10).join(LINES.values())}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"prompt": f"{a}+1=", "answer": str(a + 1), "solution": f"{a}+1={a + 1}"} for a in range(6)]
    rows.append({"prompt": "long " * 200, "answer": "1", "solution": "1"})
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows[:-1])), encoding="utf-8")
    held = [{"prompt": f"{a}+2=", "answer": str(a + 2)} for a in range(4)]
    (tmp_path / "h.jsonl").write_text("\n".join(map(json.dumps, held)), encoding="utf-8")
    return tmp_path


def write(folder: Path, **parts: object) -> Path:
    given = {"policy": "", "data": "", "tables": "", "stages": "", "max_tokens": 8, **parts}
    text = RECIPE.format(shape="\n".join(LINES.values()), **given)
    if "train" in str(given["data"]):
        text = text.replace('train = "d.jsonl"\n', "", 1)
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def checked(path: Path, run: RunDirectory | None = None, told: list[str] | None = None) -> CheckedRecipe:
    lines: list[str] = [] if told is None else told
    return with_models(check(load(path), path.parent), lines.append, run)


def loaded(path: Path, place: Path, table: str = "policy") -> None:
    """Have the recipe load its model from ``place``."""
    text = path.read_text(encoding="utf-8")
    start = text.index(f"[{table}]")
    end = text.index("[data]" if table == "policy" else "[[stage]]", start)
    path.write_text(f'{text[:start]}[{table}]\npath = "{place}"\n{text[end:]}', encoding="utf-8")


def save(folder: Path, **options: object) -> Path:
    config = PolicyConfig(model_type="qwen3", model={**SHAPE, **options}, tokenizer={"kind": "bpe", "vocab_size": 300})
    fresh_policy(config, None, ["hello world"] * 9, 0, CPU).save(folder)
    return folder


def test_a_recipe_that_fits(folder: Path) -> None:
    assert checked(write(folder, tables=STUDENT, stages=DISTILL.format(distill=""))).data is not None


def test_layers_for_multi_token_prediction_are_said_to_be_left_out_once(folder: Path) -> None:
    place = save(folder / "model")
    file = place / "model.safetensors"
    save_file({**load_file(file), "model.layers.1.eh_proj.weight": torch.ones(4)}, file, metadata={"format": "pt"})
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
    path, told = write(folder), list[str]()
    loaded(path, place)
    checked(path, told=told)
    (line,) = told
    assert line.startswith(f"1 tensors of {place} are left out (multi-token prediction)")


def test_no_run_directory_is_made_for_a_model_that_is_not_there(folder: Path) -> None:
    path = write(folder, tables=STUDENT, stages=DISTILL.format(distill=""))
    loaded(path, folder / "nowhere", "student")
    with pytest.raises(UsageError, match=r"no such folder: .*nowhere"):
        run_job(load(path), path, JobOptions(folder=folder / "run", command="x"), Console(file=io.StringIO()))
    assert not (folder / "run").exists()


def test_a_late_stage_is_looked_at_first(folder: Path) -> None:
    """teacher_kl with another vocabulary was found after SFT, GRPO and rejection sampling."""
    path = write(folder, tables=STUDENT, stages=DISTILL.format(distill="teacher_kl = 0.5"))
    text = path.read_text(encoding="utf-8")
    loaded(path, save(folder / "other"), "student")
    with pytest.raises(UsageError, match=r"'small': teacher and student (need one vocab|cut .* into different words)"):
        checked(path)
    loaded(path, folder / "other")
    checked(path)
    path.write_text(text.replace('kind = "bpe", vocab_size = 301', 'kind = "characters"'), encoding="utf-8")
    with pytest.raises(UsageError, match=r"\[student\].*needs a procedural task"):
        checked(path)


def test_a_head_with_fewer_rows_than_words_and_a_type_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"tokenizer has \d+ tokens, and its head only 100 rows"):
        checked(write(folder, policy="vocab_size = 100"))
    path = write(folder)
    path.write_text(path.read_text(encoding="utf-8").replace('"qwen3"', '"qwen4_nano"', 1), encoding="utf-8")
    with pytest.raises(UsageError, match="qwen4_nano"):
        checked(path)


def test_a_damaged_checkpoint_and_one_of_another_shape(folder: Path) -> None:
    path = write(folder)
    loaded(path, save(folder / "model"))
    checked(path)
    file = folder / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(UsageError, match=r"model\.safetensors is damaged"):
        checked(path)


def test_what_ranks_can_not_cut_is_said_before_the_first_stage(folder: Path) -> None:
    """The student of a late stage as well; that it is dense beside a policy with experts is no matter."""
    ranks = "[trainer]\nranks = 2\ntensor_parallel = 2\n"
    path = write(folder, tables=STUDENT + ranks, stages=DISTILL.format(distill=""))
    with pytest.raises(
        UsageError, match=r"stage 'cold': trainer\.tensor_parallel = 2 must divide .*num_key_value_heads"
    ):
        checked(path)
    text = path.read_text(encoding="utf-8").replace("num_key_value_heads = 1", "num_key_value_heads = 2", 1)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"stage 'small': trainer\.tensor_parallel = 2 must divide"):
        checked(path)
    path.write_text(text.replace("num_key_value_heads = 1", "num_key_value_heads = 2"), encoding="utf-8")
    checked(path)
    experts = "tensor_parallel = 1\nexpert_parallel = 2"
    path.write_text(text.replace("tensor_parallel = 2", experts), encoding="utf-8")
    with pytest.raises(UsageError, match=r"trainer\.expert_parallel = 2, and no model of the run has experts"):
        checked(path)


def test_the_engine_is_there_and_its_limit_is_the_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlreason.sampler.open.installed", lambda _: False)
    with pytest.raises(UsageError, match=r"stage 'rl': sampler\.engine = \"vllm\": vLLM is not installed"):
        checked(write(folder, tables='[sampler]\nengine = "vllm"'))
    with pytest.raises(UsageError, match=r"sampler\.max_length = 65 is more than the 64 positions of \[policy\]"):
        checked(write(folder, tables="[sampler]\nmax_length = 65"))


@pytest.mark.parametrize("limit", ["", "[sampler]\nmax_length = 40"])
def test_answers_that_leave_no_room(folder: Path, limit: str) -> None:
    most = 40 if limit else 64
    path = write(folder, max_tokens=most, tables=limit)
    with pytest.raises(UsageError, match=rf"stage 'rl': max_tokens = {most} leaves no room for a prompt.* = {most}"):
        describe(load(path), path)  # before any model is read
    assert f"at most {most} tokens; one that doesn't fit stops the run" in describe(
        load(write(folder, tables=limit)), folder / "recipe.toml"
    )
    with pytest.raises(UsageError, match=rf"stage 'rl': problem '.*' has a prompt of \d+ tokens.*more than {most}"):
        checked(write(folder, max_tokens=most - 1, tables=limit))


def test_overlong_rows_are_refused_by_name_or_dropped_and_counted(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"stage 'cold': problem .* is a demonstration of \d+ tokens.*drop"):
        checked(write(folder, data='train = "all.jsonl"'))
    told: list[str] = []
    found = checked(write(folder, data='train = "all.jsonl"\noverlong_prompts = "drop"'), told=told)
    assert told[0].startswith("1 problem(s) left out as too long")
    for stage in ("cold", "rl"):
        source = found.data.of(stage)
        assert source.train_size == 6
        assert not any("long" in problem.prompt for problem in source.train(0, 24))
    assert found.data.parts()["train"].size == 7  # what the manifest compares is the file


def test_a_run_gone_on_with_leaves_out_the_same_rows_and_keeps_its_day(folder: Path) -> None:
    """Also where only a stage that is done had no room for them."""
    path = write(folder, data='train = "all.jsonl"\noverlong_prompts = "drop"')
    record = fresh("x", 0, "2026-03-04T23:59:59+00:00", [])
    from rlreason.run.manifest import StageEntry

    record.stages = [StageEntry(name="cold", kind="sft", status="done"), StageEntry(name="rl", kind="grpo")]
    run = RunDirectory.create(folder / "run", path.read_text(encoding="utf-8"), record, ())
    save(run.stage_folder("cold") / "checkpoint")
    found = checked(path, run)
    assert found.data.of("rl").train_size == 6
    assert str(found.prompt_format.day) == "2026-03-04"
    assert checked(path).prompt_format.day is not None


def test_a_trace_that_is_longer_than_the_student(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher may have had room for more."""
    from types import SimpleNamespace

    from rlreason.config import DistillStage
    from rlreason.policy.policies import load_policy
    from rlreason.stages import distill
    from rlreason.stages.reject import Trace
    from rlreason.types import Problem

    problem = Problem(id="p1", prompt="1+1=", verifier="math", reference="2")
    traces = [Trace(problem=problem, response="2"), Trace(problem=problem, response="2 " * 99)]
    monkeypatch.setattr(distill, "read_traces", lambda *_: iter(traces))
    student: Any = load_policy(save(folder / "model"), torch.float32, CPU)
    stage = DistillStage(kind="distill", name="small", steps=1, batch_size=1)
    for data, told in (
        ("", None),
        (
            'overlong_prompts = "drop"',
            ["small: 1 trace(s) left out as longer than 64 tokens"],
        ),
    ):
        path = write(folder, data=data)
        lines: list[str] = []
        run = SimpleNamespace(tell=lines.append)
        context: Any = SimpleNamespace(recipe=load(path), prompt_format=checked(path).prompt_format, run=run)
        if told is None:
            with pytest.raises(UsageError, match=r"trace of problem 'p1' has \d+ tokens, and the student 64 positions"):
                distill.distill_rows(stage, context, student, folder)
        else:
            learnt = distill.distill_rows(stage, context, student, folder)
            assert (lines, len(learnt.at(0)), learnt.count) == (told, 1, 1)
            assert learnt.said() == "small: 1 rows, learnt 1 times in 1 steps"


OPD = """
[[stage]]
kind = "opd"
name = "taught"
model = "policy"
teacher = "big"
steps = 1
problems_per_step = 2
max_tokens = {max_tokens}
"""


def test_rows_that_a_teacher_cannot_score_whole_are_refused_or_left_out(folder: Path) -> None:
    place = save(folder / "short", max_position_embeddings=48)
    save(folder / "student")

    def recipe(max_tokens: int, where: str = "trainer", data: str = "") -> Path:
        tables = f'[teacher.big]\npath = "{place}"\nwhere = "{where}"\n'
        stages = OPD.format(max_tokens=max_tokens).replace(
            "steps = 1", 'steps = 1\nsupport = "tail"' if where == "vllm" else "steps = 1"
        )
        path = write(folder, tables=tables, stages=stages, data=data)
        loaded(path, folder / "student")
        return path

    ids = PromptFormat().render(Problem(id="p", prompt="5+1=", reference="", verifier=""), load_tokenizer(place)).ids
    most = 48 - len(ids)
    checked(recipe(most))  # every prompt is as long as that
    message = (
        rf"'taught': problem .* prompt of {len(ids)} tokens, and max_tokens = {most + 1}: together more than the 48 "
    )
    with pytest.raises(UsageError, match=message + r"that a teacher.*change max_tokens.*overlong_prompts"):
        checked(recipe(most + 1))
    if installed("vllm"):  # and of an engine that it can't be run by
        with pytest.raises(
            UsageError, match=r'where = "vllm": vLLM.s CPU attention has no head size 16.*where = "worker"'
        ):
            checked(recipe(most, "vllm"))


SET = """
[[stage]]
kind = "reject"
name = "traces"
problems = 2
max_tokens = 8
filters = { decontaminate = { against = ["bench.jsonl"] } }
"""


def test_files_of_teachers_and_benchmarks_are_those_beside_the_recipe(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the command is given, and said before the first draw where they are not there."""
    monkeypatch.chdir("/")
    save(folder / "student")
    save(folder / "short")
    path = write(folder, tables='[teacher.big]\npath = "short"\n', stages=OPD.format(max_tokens=8) + SET)
    loaded(path, folder / "student")
    with pytest.raises(
        UsageError, match=rf"'traces': filters.decontaminate.against: {folder}/bench.jsonl can't be read"
    ):
        checked(path)
    (folder / "bench.jsonl").write_text('{"question": "9+9="}\n', encoding="utf-8")
    found = checked(path).recipe
    assert found.teacher["big"].path == str(folder / "short")
    assert str(folder / "bench.jsonl") in repr(found.stage[-1])
