"""Named sets in a mix: exact shares, each set's rows once per epoch of its own, the same from any process."""

import json
from collections import Counter
from pathlib import Path

import pytest

from rlreason.data.places import AnyOf
from rlreason.data.rows import RowFormat
from rlreason.data.source import OpenSet, ProblemSource, SetSpec, SourceSpec, open_set, open_source
from rlreason.data.supplies import MixSupply
from rlreason.errors import UsageError


def write(path: Path, count: int, shown: int = 0) -> str:
    rows = [{"id": str(i), "prompt": f"{path.stem}{i}", "answer": "1"} for i in range(count)]
    for row in rows[:shown]:
        row["solution"] = "s"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def opened(path: str, name: str) -> OpenSet:
    return open_set(SetSpec(where=path, setting=f"data.{name}.path", form=RowFormat(data_set=name), seed=3))


def mixed(tmp_path: Path, shares: dict[str, float], seed: int = 3) -> MixSupply:
    sizes = {"a": 5, "b": 12, "c": 7}
    return MixSupply(
        {
            name: (opened(write(tmp_path / f"{name}.jsonl", sizes[name], 3), name).train, share)
            for name, share in shares.items()
        },
        seed,
    )


def test_shares_are_exact_in_every_window(tmp_path: Path) -> None:
    mix = mixed(tmp_path, {"a": 0.7, "b": 0.3})
    assert (mix.window, mix.quotas) == (10, [7, 3])
    for window in range(40):
        names = Counter(mix.problem(window * 10 + i).data_set for i in range(10))
        assert names == {"a": 7, "b": 3}
    # Shares are relative, and their order within a window is not always the same.
    assert mixed(tmp_path, {"a": 7, "b": 3}).quotas == [7, 3]
    assert len({tuple(mix.place(w * 10 + i)[0] for i in range(10)) for w in range(20)}) > 10


def test_no_row_is_passed_over_or_repeated_in_its_sets_epoch(tmp_path: Path) -> None:
    mix = mixed(tmp_path, {"a": 0.5, "b": 0.3, "c": 0.2})
    stream = [mix.problem(i) for i in range(600)]
    for name, size in (("a", 5), ("b", 12), ("c", 7)):
        own = [problem.id for problem in stream if problem.data_set == name]
        epochs = [own[at : at + size] for at in range(0, len(own) - size, size)]
        assert len(epochs) > 10
        assert all(sorted(epoch) == sorted(f"{name}/{i}" for i in range(size)) for epoch in epochs)
    # Ids of two sets differ although their rows' ids are the same.
    assert len({problem.id for problem in stream}) == 5 + 12 + 7


def test_a_mix_is_a_function_of_seed_and_index(tmp_path: Path) -> None:
    first, again = (mixed(tmp_path, {"a": 0.7, "b": 0.3}) for _ in range(2))
    whole = [first.problem(i) for i in range(90)]
    assert [again.problem(i) for i in reversed(range(90))] == whole[::-1]
    other = mixed(tmp_path, {"a": 0.7, "b": 0.3}, seed=4)
    assert [other.problem(i) for i in range(90)] != whole
    source = ProblemSource(first, None)
    assert source.train(0, 90) == source.train(0, 31) + source.train(31, 59) == whole
    assert source.train_size is source.demonstration_count is None


@pytest.mark.parametrize(
    ("shares", "quotas"),
    [
        ([1 / 3, 2 / 3], [1, 2]),
        ([0.2, 0.2, 0.6], [1, 1, 3]),
        # 1/997 and 1/991 have no common window of 1000: the nearest, which add up to it.
        ([0.123457, 0.400001, 0.476542], [123, 400, 477]),
    ],
)
def test_windows_are_as_small_as_exact_shares_allow(tmp_path: Path, shares: list[float], quotas: list[int]) -> None:
    mix = mixed(tmp_path, dict(zip("abc", shares, strict=False)))
    assert mix.quotas == quotas
    with pytest.raises(UsageError, match="under 1 of 1000"):
        mixed(tmp_path, {"a": 1e-4, "b": 1.0})


def test_a_mix_of_demonstrations_says_when_they_run_out(tmp_path: Path) -> None:
    """Three rows of each set have a solution; 0.7 of 5 is 3 or 4 of set a, never more than 3 in the first 4 items."""
    mix = mixed(tmp_path, {"a": 0.5, "b": 0.5})
    source = ProblemSource(mix, None)
    source.check_distinct(6)
    assert len({problem.id for problem in source.demonstrations(0, 6)}) == 6
    with pytest.raises(UsageError, match=r"8 distinct demonstrations of this mix are 4 of 'a', which has 3"):
        source.check_distinct(8)


def test_a_task_and_rows_are_mixed(tmp_path: Path) -> None:
    task = open_set(SetSpec(where="arithmetic", setting="data.sums.path", form=RowFormat(data_set="sums")))
    rows = opened(write(tmp_path / "a.jsonl", 3), "a")
    mix = MixSupply({"sums": (task.train, 0.5), "a": (rows.train, 0.5)}, 0)
    found = [mix.problem(i) for i in range(8)]
    assert Counter(problem.data_set for problem in found) == {"sums": 4, "a": 4}
    assert [p.prompt for p in found if p.data_set == "sums"] == [task.train.problem(i).prompt for i in range(4)]
    assert mix.alphabet is None


def test_a_list_of_files_is_all_of_them(tmp_path: Path) -> None:
    """review/repro_core/k_data.py: of a (5 rows) and b (7 rows) b was ignored without a word."""
    a, b = write(tmp_path / "a.jsonl", 5), write(tmp_path / "b.jsonl", 7)
    source = open_source(SourceSpec(train=(a, b)))
    assert source.train_size == 12
    assert source.origins == (f"{a} + {b}",)
    epoch = source.train(0, 12)
    assert sorted(p.prompt for p in epoch) == sorted([*(f"a{i}" for i in range(5)), *(f"b{i}" for i in range(7))])
    # Both files number their rows from 0: ids that two files share say which file.
    assert len({p.id for p in epoch}) == 12
    assert {p.id for p in epoch if p.prompt in ("a3", "b3", "b6")} == {"1-a/3", "2-b/3", "6"}
    with pytest.raises(UsageError, match=r"'arithmetic' is a task without end.*mix them"):
        open_source(SourceSpec(train=(a, "arithmetic")))


def test_any_of_takes_the_first_that_there_is(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", 5), write(tmp_path / "b.jsonl", 7)
    assert open_source(SourceSpec(train=AnyOf(any_of=("none.jsonl", b, a)))).origins == (b,)
    joined = open_source(SourceSpec(train=(AnyOf(any_of=("none.jsonl", b)), a)))
    assert joined.train_size == 12
    with pytest.raises(UsageError, match=r"data.train: no data file 'x.jsonl'.*; and no data file 'y.jsonl'"):
        open_source(SourceSpec(train=AnyOf(any_of=("x.jsonl", "y.jsonl"))))


def test_demonstrations_are_counted_not_problems(tmp_path: Path) -> None:
    """review/repro_core/k_data.py: of 5 rows 3 have a solution; an epoch showed two of them twice."""
    source = open_source(SourceSpec(train=write(tmp_path / "a.jsonl", 5, shown=3)))
    assert (source.train_size, source.demonstration_count) == (5, 3)
    assert Counter(p.prompt for p in source.demonstrations(0, 3)) == {"a0": 1, "a1": 1, "a2": 1}
    source.check_distinct(3)
    with pytest.raises(UsageError, match=r"4 distinct demonstrations are asked for, and .*a\.jsonl has 3"):
        source.check_distinct(4)


def test_a_split_is_by_the_prompt(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"id": str(i), "prompt": f"question {i // 2}" + "  ?" * (i % 2), "answer": "1"} for i in range(2000)]
    rows += [{"id": f"x{i}", "prompt": f"Question  {i}", "answer": "1"} for i in range(1000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [open_source(SourceSpec(train=str(path), split=0.1, seed=seed)) for seed in (0, 1)]
    held = {p.id for p in sources[0].heldout(9999)}
    assert held == {p.id for p in sources[1].heldout(9999)}
    assert sources[0].train_size == 3000 - len(held)
    # 2000 different prompts, each held out with probability 0.1: 300 of 3000 rows, 4 standard deviations are 70.
    assert 230 < len(held) < 370
    # The same question in other case and spacing is on the same side.
    assert sources[0].overlap == 0
    # What is appended later moves no row to the other side.
    path.write_text(path.read_text() + json.dumps({"id": "new", "prompt": "new", "answer": "1"}) + "\n")
    later = {p.id for p in open_source(SourceSpec(train=str(path), split=0.1)).heldout(9999)}
    assert later - {"new"} == held
    with pytest.raises(UsageError, match="leaves 1 of its 1 rows to train on and 0 held out"):
        open_source(SourceSpec(train=write(tmp_path / "one.jsonl", 1), split=1e-6))
