"""Named sets in recipes: what each stage gets, what check refuses before the run, what plan says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlreason.check import CheckedRecipe, check
from rlreason.config import load, recipe_toml
from rlreason.errors import UsageError
from rlreason.plan.text import describe
from rlreason.run.inputs import KnownInputs, keep_inputs

HEAD = 'name = "t"\n[policy.tokenizer]\nkind = "bpe"\n'
SFT = '[[stage]]\nkind = "sft"\nname = "cold"\nmodel = "policy"\nsteps = 2\nbatch_size = 2\n'
GRPO = (
    '[[stage]]\nkind = "grpo"\nname = "rl"\nsteps = 2\nproblems_per_step = 2\nsamples_per_problem = 2\nmax_tokens = 4\n'
)
EVAL = '[[stage]]\nkind = "eval"\nname = "final"\nmodels = ["rl"]\nproblems = 3\nmax_tokens = 4\n'
NAMED = """
[data.a]
path = "a.jsonl"
system = "Answer."
answer_style = "boxed"
[data.b]
path = ["b.jsonl", "c.jsonl"]
[data.test]
path = "test.jsonl"
"""


def rows(path: Path, count: int, **more: object) -> None:
    lines = [{"prompt": f"{path.stem} {i}?", "answer": str(i), "solution": "so"} | more for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("a", 5), ("b", 4), ("c", 3), ("test", 6)):
        rows(tmp_path / f"{name}.jsonl", count)
    return tmp_path


def checked(folder: Path, text: str, *overrides: str) -> CheckedRecipe:
    (folder / "recipe.toml").write_text(HEAD + text)
    return check(load(folder / "recipe.toml", overrides), folder)


def test_each_stage_gets_its_own_problems(folder: Path) -> None:
    text = NAMED + SFT + 'data = "a"\n' + GRPO + "data = { a = 0.75, b = 0.25 }\n" + EVAL + 'data = "test"\n'
    found = checked(folder, text)
    assert {p.source for p in found.data.of("cold").demonstrations(0, 5)} == {"a"}
    drawn = found.data.of("rl").train(0, 8)
    assert sorted(p.data_set for p in drawn) == ["a"] * 6 + ["b"] * 2
    assert {p.source for p in found.data.of("final").heldout(9)} == {"test"}
    assert list(found.data.parts()) == ["a", "b", "test"]
    assert {Path(one.path).name for one in found.inputs} == {"a.jsonl", "b.jsonl", "c.jsonl", "test.jsonl"}
    # How a problem is asked goes with its set.
    of_a, of_b = (next(p for p in drawn if p.data_set == name) for name in ("a", "b"))
    assert (found.prompt_format.of(of_a).system, found.prompt_format.of(of_b).system) == ("Answer.", None)
    # The effective recipe names the same problems, from anywhere.
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/recipe.toml").write_text(recipe_toml(found.recipe))
    again = check(load(folder / "elsewhere/recipe.toml"), folder / "elsewhere")
    assert again.recipe == found.recipe
    assert again.data.of("rl").train(0, 8) == drawn


def test_defaults_by_name_and_what_a_set_holds_out(folder: Path) -> None:
    split = NAMED.replace('path = "a.jsonl"', 'path = "a.jsonl"\nsplit = 0.4')
    text = '[data]\ntrain = "a"\nheldout = "test"\n' + split + SFT + "eval_every = 1\n" + GRPO + 'data = "a"\n' + EVAL
    found = checked(folder, text)
    own = found.data.of("rl").heldout(99)
    trained = {p.prompt for p in found.data.of("rl").train(0, 9)}
    assert len(own) + len(trained) == 5
    assert trained.isdisjoint(p.prompt for p in own)
    assert {p.source for p in found.data.of("cold").heldout(9)} == {"test"}
    assert {p.source for p in found.data.of("final").heldout(9)} == {"test"}
    named = checked(folder, text.replace("eval_every = 1\n", 'eval_every = 1\nheldout = "a"\n'))
    assert named.data.of("cold").heldout(99) == own
    with pytest.raises(UsageError, match=r"stage\.cold\.data is missing, and there is no data\.train"):
        checked(folder, NAMED + SFT)


def test_a_run_goes_on_with_the_files_of_its_sets_as_they_were(folder: Path, tmp_path: Path) -> None:
    text = NAMED + GRPO + "data = { a = 0.5, b = 0.5 }\n"
    first = checked(folder, text)
    root = tmp_path / "run"
    root.mkdir()
    known = KnownInputs(root=root, entries=tuple(keep_inputs(root, first.inputs)))
    assert check(first.recipe, folder, known).data.of("rl").train(0, 8) == first.data.of("rl").train(0, 8)
    rows(folder / "c.jsonl", 9)
    with pytest.raises(UsageError, match=r"c\.jsonl"):
        check(first.recipe, folder, known)
    # One that is gone is read from its copy.
    (folder / "c.jsonl").unlink()
    again = check(first.recipe, folder, known)
    assert again.data.of("rl").train(0, 8) == first.data.of("rl").train(0, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GRPO + 'data = "aa"\n', r"stage\.rl\.data: no set 'aa'; did you mean 'a'.*\(sets: a, b, test\)"),
        (GRPO + "data = { a = 0.5, x = 0.5 }\n", r"stage\.rl\.data: no set 'x'"),
        (GRPO + "data = { a = 0.5, b = 0 }\n", r"a mix needs sets with shares above 0"),
        (GRPO + 'data = "a"\nheldout = "tst"\n', r"stage\.rl\.heldout: no set 'tst'; did you mean 'test'"),
        (EVAL.replace('"rl"', '"policy"') + 'data = "tes"\n', r"stage\.final\.data: no set 'tes'; did you mean 'test'"),
        (EVAL.replace('"rl"', '"policy"'), r"no held-out problems: .*set data\.heldout"),
        (
            GRPO + 'data = "a"\ncurriculum = {}\nstaleness = 1\n',
            r"staleness = 1 .*curriculum could not be resumed exactly",
        ),
        (GRPO + "data = { a = 0.5, b = 0.5 }\ncurriculum = {}\n", r"a curriculum needs one set of rows"),
        (SFT + 'data = "a"\ndemonstrations = 6\n', r"6 distinct demonstrations are asked for, and .*a\.jsonl has 5"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        checked(folder, NAMED + text)


def test_overlap_stops_a_run_unless_it_is_allowed(folder: Path) -> None:
    """review/core.md 18, newcomer.md 9: held-out = train was silent in `run`."""
    rows(folder / "a.jsonl", 5)
    with (folder / "test.jsonl").open("a") as file:
        file.write(json.dumps({"id": "same", "prompt": " A  3? ", "answer": "3"}) + "\n")
    one = '[data]\ntrain = "a.jsonl"\nheldout = "test.jsonl"\n'
    message = r"1 of 7 held-out prompts \(heldout\) are also training prompts \(train\), such as that of problem 'same'"
    with pytest.raises(UsageError, match=message + r".*data\.allow_overlap = true"):
        checked(folder, one + GRPO + EVAL)
    found = checked(folder, one + "allow_overlap = true\n" + GRPO + EVAL)
    assert found.data.parts()["heldout"].overlap == 1
    assert "WARNING  1 of 7 held-out prompts" in describe(load(folder / "recipe.toml"), folder / "recipe.toml")
    named = NAMED + GRPO + "data = { a = 0.5, b = 0.5 }\n" + EVAL + 'data = "test"\n'
    with pytest.raises(UsageError, match=r"1 of 7 held-out prompts \(test\) are also training prompts \(a\)"):
        checked(folder, named)
    # Measuring alone trains on nothing.
    assert checked(folder, one + EVAL.replace('"rl"', '"policy"')).data.overlaps()


def test_gold_answers_that_no_verifier_can_use_stop_a_run(folder: Path) -> None:
    """review/trainer.md A16: verl's whole reward_model as the answer was all BROKEN, and the run ended with a tick."""
    rows(folder / "a.jsonl", 5, reward_model={"style": "rule", "ground_truth": "4"})
    table = '[data]\ntrain = "a.jsonl"\ncolumns = { answer = "reward_model" }\n'
    with pytest.raises(
        UsageError, match=r"a\.jsonl: the verifier 'math' can use none of the first 5 gold answers.*style"
    ):
        checked(folder, table + GRPO)
    found = checked(folder, table.replace('"reward_model"', '"reward_model.ground_truth"') + GRPO)
    assert found.source.train(0, 1)[0].reference == "4"


def test_chats_without_gold_answers_can_be_shown_but_not_scored(folder: Path) -> None:
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    (folder / "chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    one = '[data]\ntrain = "chat.jsonl"\n'
    assert checked(folder, one + SFT).source.demonstrations(0, 1)[0].answer == "4"
    with pytest.raises(UsageError, match=r"chat\.jsonl: 1 of 1 problems have no gold answer, such as 'chat-1'"):
        checked(folder, one + SFT + GRPO)


def test_plan_says_sets_mixes_curricula_and_the_first_prompt(folder: Path) -> None:
    (folder / "b.jsonl").write_text('{"prompt": \n' + (folder / "b.jsonl").read_text())
    named = NAMED.replace('["b.jsonl", "c.jsonl"]', '["b.jsonl", "c.jsonl"]\nskip_bad_rows = true')
    checked(
        folder,
        named + SFT + 'data = "a"\n' + GRPO + "data = { a = 3, b = 1 }\n" + GRPO.replace('"rl"', '"rl2"')
        + 'data = "a"\ncurriculum = { skip_solved_after = 2, retry_after = 9 }\n' + EVAL + 'data = "test"\n',
    )  # fmt: skip
    text = describe(load(folder / "recipe.toml"), folder / "recipe.toml")
    for words in (
        "data     a: ",
        "b.jsonl + ",
        "7 problems, 1 bad rows left out, the first: ",
        "line 1: not valid JSON",
        "data     test: ",
        "prompt   'Answer.a ",
        "on a (75.0%) + b (25.0%)",
        "right 2 times in a row is passed over for 9 steps",
        "measured on test",
    ):
        assert words in text, words


def test_sets_are_asked_as_data_says_where_they_say_nothing(folder: Path) -> None:
    asked = '[data]\nsystem = "Think."\nanswer_style = "boxed"\nprompt_template = "Q: {prompt}"\n'
    own = '[data.a]\npath = "a.jsonl"\n[data.b]\npath = "b.jsonl"\nsystem = ""\nanswer_style = "tags"\n'
    found = checked(folder, asked + own + GRPO + "data = { a = 0.5, b = 0.5 }\n")
    drawn = {problem.data_set: problem for problem in found.data.of("rl").train(0, 4)}
    forms = {name: found.prompt_format.of(problem) for name, problem in drawn.items()}
    assert (forms["a"].system, forms["a"].style, forms["a"].ask) == ("Think.", "boxed", "Q: {prompt}")
    assert (forms["b"].system, forms["b"].style, forms["b"].ask) == ("", "tags", "Q: {prompt}")
    assert [role for role, _ in found.prompt_format.turns(drawn["b"])] == ["user"]
    again = folder / "again.toml"  # as a run's recipe.toml has it
    again.write_text(recipe_toml(found.recipe))
    assert check(load(again), folder).recipe == found.recipe


@pytest.mark.parametrize(
    "line",
    ['columns = { prompt = "q" }', 'answer_after = "####"', 'verifier = "code"', "split = 0.1", "skip_bad_rows = true"],
)
def test_keys_of_data_that_read_nothing_are_refused(folder: Path, line: str) -> None:
    """Canary: beside rows of ``data.train`` the same key is used."""
    key = line.split(" ", maxsplit=1)[0]
    with pytest.raises(UsageError, match=rf"data\.{key} does nothing.*write it in \[data\.a\] or"):
        checked(folder, f"[data]\n{line}\n" + NAMED + SFT + 'data = "a"\n')
    own = f'[data]\ntrain = "b.jsonl"\n{line}\n' + NAMED + SFT + 'data = "a"\n'
    load_text = folder / "used.toml"
    load_text.write_text(HEAD + own)
    assert load(load_text).data.train == "b.jsonl"


def test_a_form_that_is_not_asked_for_is_named(folder: Path) -> None:
    """Half of R1-Zero's reward is for its form: nobody gets it whose prompts ask for another."""
    text = "[reward]\naccuracy = 1.0\nformat = FORM\n" + NAMED + GRPO + "data = { a = 0.5, b = 0.5 }\n"
    warning = "reward.format pays for 'tags', and the answers of data.a are in 'boxed'"
    (said,) = checked(folder, text.replace("FORM", "0.1")).warnings
    assert said.startswith(warning)
    assert f"WARNING  {warning}" in describe(load(folder / "recipe.toml"), folder / "recipe.toml")
    (other,) = checked(folder, text.replace("FORM", '{ weight = 0.1, style = "boxed" }')).warnings
    assert "data.b are in 'tags'" in other
    for right in ('{ weight = 0.1, style = "boxed", sources = ["a"] }', '{ weight = 0.1, sources = ["b"] }'):
        assert checked(folder, text.replace("FORM", right)).warnings == ()
    mine = text.replace("FORM", '{ weight = 0.1, sources = ["b"] }') + "[stage.reward]\naccuracy = 1\nformat = 1\n"
    (own,) = checked(folder, mine).warnings
    assert own.startswith("stage.rl.reward.format pays for 'tags'")


def test_plan_says_how_often_problems_are_asked(folder: Path) -> None:
    """8 problems, three quarters of them of the 5 of a, a quarter of the 7 of b: 6/5 and 2/7."""
    text = NAMED + GRPO.replace("steps = 2", "steps = 4") + "data = { a = 0.75, b = 0.25 }\n"
    reject = '[[stage]]\nkind = "reject"\nname = "traces"\nmodel = "rl"\ndata = "b"\nproblems = 14\nmax_tokens = 4\n'
    (folder / "recipe.toml").write_text(HEAD + text + reject)
    said = describe(load(folder / "recipe.toml"), folder / "recipe.toml")
    assert "problems drawn: 6 of 5 (1.2 epochs), 2 of 7 (0.29 epochs)" in said
    assert "problems drawn: 14 of 7 (2 epochs)" in said
