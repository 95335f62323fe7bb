"""The files that a recipe names: found, copied, compared, and read from the copies where they are gone."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rlreason.check import CheckedRecipe, check
from rlreason.config import load
from rlreason.errors import UsageError
from rlreason.run import inputs
from rlreason.run.inputs import InputFile, KnownInputs, keep_inputs
from rlreason.types import Completion, Verdict

RECIPE = """
name = "tiny"
[data]
train = { any_of = ["nowhere.jsonl", "sums.jsonl", "arithmetic"] }
heldout = "sums.jsonl"
allow_overlap = true
verifier = "judge.py:judge"
[reward]
accuracy = 1.0
"judges/length.py:short" = 0.1
[[stage]]
kind = "sft"
name = "cold"
steps = 6
"""
ROW = '{"id": "1", "prompt": "1+1=", "answer": "2", "solution": "easy"}\n'
JUDGE = "def judge(problem, completion):\n    return completion.text == problem.reference\n"
SHORT = "def short(problem, completion):\n    return 0.5\n"
COMPLETION = Completion(prompt_ids=(), token_ids=(), sampler_logprobs=None, text="2", finish_reason="stop")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RLREASON_DATA", raising=False)
    folder = tmp_path / "project"
    (folder / "judges").mkdir(parents=True)
    (folder / "tiny.toml").write_text(RECIPE)
    (folder / "sums.jsonl").write_text(ROW)
    (folder / "judge.py").write_text(JUDGE)
    (folder / "judges" / "length.py").write_text(SHORT)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return folder


def checked(project: Path, known: KnownInputs | None = None) -> CheckedRecipe:
    return check(load(project / "tiny.toml"), project, known)


def known_after(project: Path, root: Path, **options: bool) -> KnownInputs:
    """What a run that was begun now knows."""
    root.mkdir(exist_ok=True)
    entries = tuple(keep_inputs(root, checked(project).inputs))
    return KnownInputs(root=root, entries=entries, **options)


def test_everything_becomes_absolute_and_the_data_that_was_taken(project: Path) -> None:
    result = checked(project)
    assert result.recipe.data.train == str(project / "sums.jsonl")
    assert result.recipe.data.heldout == str(project / "sums.jsonl")
    assert result.recipe.data.verifier == f"{project}/judge.py:judge"
    assert list(result.recipe.reward) == ["accuracy", f"{project}/judges/length.py:short"]
    assert {(one.kind, Path(one.path).name) for one in result.inputs} == {
        ("data", "sums.jsonl"),
        ("reward", "length.py"),
        ("reward", "judge.py"),
    }
    # Metrics are named after the file, wherever it is.
    assert [part.name for part in result.mix.parts] == ["accuracy", "length.py:short"]
    score = result.mix(result.source.train(0, 1)[0], COMPLETION)
    assert (score.score, score.verdict, dict(score.parts)) == (
        1.05,
        Verdict.CORRECT,
        {"accuracy": 1.0, "length.py:short": 0.5},
    )


def test_the_recipes_folder_is_looked_into_first(project: Path) -> None:
    Path("sums.jsonl").write_text(ROW.replace("1+1=", "2+2="))
    Path("judge.py").write_text("def other(problem, completion): return 1\n")
    assert checked(project).source.train(0, 1)[0].prompt == "1+1="
    (project / "sums.jsonl").unlink()
    assert checked(project).source.train(0, 1)[0].prompt == "2+2="


def test_local_model_folders_become_absolute_and_hub_ids_stay(project: Path) -> None:
    (project / "model").mkdir()
    recipe = load(project / "tiny.toml", ("policy.path=model", "student.path=Qwen/Qwen3-0.6B"))
    result = check(recipe, project).recipe
    assert result.policy.path == str(project / "model")
    assert result.student is not None
    assert result.student.path == "Qwen/Qwen3-0.6B"


def test_what_is_gone_is_read_from_the_copies(project: Path, tmp_path: Path) -> None:
    before = checked(project)
    known = known_after(project, tmp_path / "run")
    for name in ("sums.jsonl", "judge.py", "judges/length.py"):
        (project / name).unlink()
    after = checked(project, known)
    assert after.recipe == before.recipe
    problem, original = after.source.train(0, 1)[0], before.source.train(0, 1)[0]
    assert replace(problem, verifier="") == replace(original, verifier="")
    assert after.source.train_part == before.source.train_part
    assert after.mix(problem, COMPLETION).score == 1.05
    assert [part.name for part in after.mix.parts] == ["accuracy", "length.py:short"]
    (tmp_path / "run" / known.entries[0].copied_to).write_text("changed")  # type: ignore[operator]
    with pytest.raises(UsageError, match=r"sums\.jsonl is gone, and its copy .* is missing or changed"):
        checked(project, known)


@pytest.mark.parametrize("name", ["sums.jsonl", "judge.py", "judges/length.py"])
def test_what_changed_is_refused_by_name_with_both_hashes_or_accepted(project: Path, tmp_path: Path, name: str) -> None:
    known = known_after(project, tmp_path / "run")
    entry = next(entry for entry in known.entries if entry.path == str(project / name))
    with (project / name).open("a") as file:
        file.write("\n")
    with pytest.raises(UsageError) as caught:
        checked(project, known)
    message = str(caught.value)
    assert message.startswith(str(project / name))
    assert entry.sha256 in message
    assert inputs.atomic.file_sha256(project / name) in message
    assert "--accept-changes" in message
    accepting = KnownInputs(root=known.root, entries=known.entries, accept=True)
    checked(project, accepting)
    assert [str(project / name) in change for change in accepting.changes] == [True]


def test_a_project_that_moved_with_its_files_is_the_same(project: Path, tmp_path: Path) -> None:
    before = checked(project).recipe
    known = known_after(project, tmp_path / "run")
    moved = tmp_path / "moved"
    project.rename(moved)
    assert checked(moved, known).recipe == before


def test_a_recipe_of_a_run_directory_finds_its_copies(project: Path, tmp_path: Path) -> None:
    from rlreason.config import recipe_toml
    from rlreason.run import manifest
    from rlreason.run.directory import RunDirectory, now

    result = checked(project)
    record = manifest.fresh("rlreason run x", seed=0, created=now(), gpus=[])
    RunDirectory.create(tmp_path / "run", recipe_toml(result.recipe), record, result.inputs)
    (project / "sums.jsonl").unlink()
    (tmp_path / "run").rename(tmp_path / "moved")
    path = tmp_path / "moved" / "recipe.toml"
    assert check(load(path), path.parent).source.train(0, 1)[0].prompt == "1+1="
    # One that is there is taken as it is: nothing is gone on with.
    (project / "sums.jsonl").write_text(ROW.replace("1+1=", "2+2="))
    assert check(load(path), path.parent).source.train(0, 1)[0].prompt == "2+2="


def test_large_data_is_not_copied(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "LARGEST_COPY", 10)
    known = known_after(project, tmp_path / "run")
    assert known.entries[0].copied_to is None
    assert "not copied" in str(known.entries[0].note)
    # Reward code always is.
    assert all(entry.copied_to for entry in known.entries if entry.kind == "reward")
    (project / "sums.jsonl").unlink()
    with pytest.raises(UsageError, match=r"sums\.jsonl is gone, and .* has no copy of it \(not copied"):
        checked(project, known)


def test_an_installed_plug_in_is_compared_by_its_modules_file(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site"
    package.mkdir()
    (package / "h3_judges.py").write_text(SHORT)
    monkeypatch.syspath_prepend(str(package))
    recipe = load(project / "tiny.toml", ('reward."h3_judges:short"=0.2',))
    result = check(recipe, project)
    assert InputFile(kind="reward", path="h3_judges", file=package / "h3_judges.py", is_module=True) in result.inputs
    (tmp_path / "run").mkdir()
    entries = tuple(keep_inputs(tmp_path / "run", result.inputs))
    assert [entry.copied_to for entry in entries if entry.path == "h3_judges"] == [None]
    (package / "h3_judges.py").write_text(SHORT + "#\n")
    with pytest.raises(UsageError, match="h3_judges changed since"):
        check(recipe, project, KnownInputs(root=tmp_path / "run", entries=entries))
    del sys.modules["h3_judges"]


def test_a_plug_in_file_that_is_not_there_says_where_it_was_looked_for(project: Path) -> None:
    (project / "judges" / "length.py").unlink()
    with pytest.raises(
        UsageError, match=rf"\[reward\] .*'judges/length\.py' does not exist \(looked for {project}/judges"
    ):
        checked(project)


def test_two_plug_ins_of_one_name_keep_their_folders(project: Path) -> None:
    (project / "judges" / "judge.py").write_text(JUDGE)
    recipe = load(project / "tiny.toml", ('reward."judges/judge.py:judge"=1', 'reward."judge.py:judge"=1'))
    names = {part.name for part in check(recipe, project).mix.parts}
    assert names == {"accuracy", "length.py:short", f"{project}/judge.py:judge", f"{project}/judges/judge.py:judge"}
