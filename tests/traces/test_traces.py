"""Filters with planted rows and an exact ledger, sets and cards, other programs' formats, and 2,000 real rows."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import Result
from typer.testing import CliRunner

from rlreason.cli.commands import app
from rlreason.config.traces import Decontamination, Difficulty, TraceFilters
from rlreason.errors import UsageError
from rlreason.traces import sets
from rlreason.traces.filters import ORDER, has_form, repeated
from rlreason.traces.formats import export_rows, read_traces_of
from rlreason.traces.rows import TraceRow, read_rows, row_file
from rlreason.traces.sets import SetOptions, check_set, write_set
from rlreason.traces.sift import Ledger, sift
from rlreason.traces.similar import Benchmarks, exact_words, grams, jaccard, near_duplicates, normal_words

DATA = Path(__file__).parent.parent.parent.parent / "shared" / "data"
GOOD = "<think>Two and two are four, as everybody who counts on the fingers of one hand knows.</think>\\boxed{4}"
QUESTION = (
    "Every morning Aya goes for a $9$-kilometer-long walk and stops at a coffee shop afterwards. How many minutes does "
    "the walk of $\\frac{1}{2}$ hour take her?"
)
NONE = Benchmarks({}, 10)


def row(name: str, **changed: object) -> TraceRow:
    values: dict[str, object] = {
        "id": name, "problem_id": f"p-{name}",
        "prompt": f"What is {name} plus two, said in the words of a {name} person?",
        "response": GOOD.replace("hand", f"hand of {name}"), "finish_reason": "stop", "verdict": "correct",
        "verifier": "math", "reference": "4", "think_tokens": 15, "answer_tokens": 1, "source": "made",
    }  # fmt: skip
    return TraceRow(**{**values, **changed})  # type: ignore[arg-type]


def filter_rows(rows: list[TraceRow], filters: TraceFilters, benchmarks: Benchmarks, keep_per_problem: int) -> Ledger:
    """Marks the rows themselves."""
    found = sift(rows, filters, benchmarks, keep_per_problem)
    assert list(found.marked(rows, range(len(rows)))) == rows
    return found.ledger


def planted() -> list[TraceRow]:
    """Two good rows, and one or more for each filter."""
    loop = " ".join(f"word{number}" for number in range(40))
    return [
        row("good"),
        row("fine"),
        row("cut", finish_reason="length"),
        row("unclosed", response="<think>I think that it is \\boxed{4}"),
        row("empty", response="<think>Hm, four.</think>  "),
        row("wrong", verdict="wrong"),
        row("unjudged", verdict=""),
        row("german", response="<think>Der Mann und die Frau sind nicht mit dem Hund für uns auf der Wiese.</think>4"),
        row("looped", response=f"<think>{loop} {loop} {loop}</think>4"),
        row("long", think_tokens=40_000),
        row("twice-a", problem_id="same", prompt="How many legs has a dog with four legs?"),
        row("twice-b", problem_id="same", prompt="How many legs has a dog with four legs?",
            response=row("twice-a").response),
        row("near-a", prompt="A farmer has 17 sheep and all but nine of them run away; how many sheep are left now?"),
        row("near-b", prompt="a farmer has 17 sheep, and all but nine of them run away; how many sheep are left NOW"),
        row("leaked", prompt=QUESTION),
        row("easy", problem_id="easy"),
        *(row(f"many{number}", problem_id="many", prompt="Count the stars in a very small and rather dark box.")
          for number in range(5)),
    ]  # fmt: skip


EXPECTED = {
    "finished": {"cut"}, "format": {"unclosed", "empty"}, "correct": {"wrong", "unjudged"}, "language": {"german"},
    "repetition": {"looped"}, "length": {"long"}, "duplicate": {"twice-b", "near-b"}, "contamination": {"leaked"},
}  # fmt: skip


def test_every_filter_stops_its_rows_and_the_ledger_adds_up() -> None:
    rows, benchmarks = planted(), Benchmarks({"aime24": [QUESTION]}, 10)
    ledger = filter_rows(rows, TraceFilters(), benchmarks, 2)
    stopped = {name: {one.id for one in rows if one.first_reason == name} for name in ORDER}
    for name, ids in EXPECTED.items():
        assert stopped[name] == ids, name
    assert len(stopped["cap"]) == 3
    assert ledger.drawn == len(rows) == ledger.kept + sum(ledger.stopped.values())
    assert ledger.contaminated == {"aime24": 1}
    assert {one.id for one in rows if not one.first_reason} >= {"good", "fine", "easy", "twice-a", "near-a"}


def test_what_is_kept_does_not_depend_on_the_order() -> None:
    kept = []
    for seed in range(4):
        rows = planted()
        random.Random(seed).shuffle(rows)
        filter_rows(rows, TraceFilters(), Benchmarks({"aime24": [QUESTION]}, 10), 2)
        kept.append({one.id for one in rows if not one.first_reason})
    assert all(one == kept[0] for one in kept)


@pytest.mark.parametrize(
    "changed",
    [
        QUESTION.upper(),
        QUESTION.replace(" ", "   ").replace(".", " ."),
        QUESTION.replace("$9$-kilometer", "9 kilometer").replace("\\frac", "\\dfrac"),
        "Here is a story. " + QUESTION + " Answer in one word.",
    ],
)
def test_a_benchmark_question_is_caught_in_other_dress(changed: str) -> None:
    benchmarks = Benchmarks({"aime24": [QUESTION]}, 10)
    assert benchmarks.hit(changed) == "aime24"


def test_a_paraphrase_is_not_caught() -> None:
    """As every card says."""
    told = (
        "Aya walks nine kilometers each day before she has a coffee. If that is half an hour, how many minutes is it?"
    )
    assert Benchmarks({"aime24": [QUESTION]}, 10).hit(told) is None
    assert Benchmarks({"short": ["What is 2 + 2?"]}, 10).hit("what is 2+2") == "short"  # compared whole


def test_benchmarks_of_one_file_name_are_all_looked_for(tmp_path: Path) -> None:
    texts = {"gsm8k/test": QUESTION, "aime/test": "Find all integers a and b whose product is divisible by seven.",
             "aime/hard": "How many sheep are left in the field when all but nine of them have run away?"}  # fmt: skip
    for name, text in texts.items():
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"problem": text}) + "\n\n")  # a blank line is no row
    found = Benchmarks.read([f"{name}.jsonl" for name in texts], 10, tmp_path)
    assert found.sizes == {"gsm8k/test.jsonl": 1, "aime/test.jsonl": 1, "hard": 1}
    assert [found.hit(text) for text in texts.values()] == list(found.sizes)
    same = [f"{name}/test.jsonl" for name in ("aime", "x/../aime", "gsm8k")]
    (tmp_path / "x").mkdir()
    assert len(Benchmarks.read(same, 10, tmp_path).sizes) == 3
    (tmp_path / "bad.jsonl").write_text('["a"]\n')
    with pytest.raises(UsageError, match=r"bad\.jsonl, line 1: no prompt, problem, question"):
        Benchmarks.read(["bad.jsonl"], 10, tmp_path)


def test_difficulty_is_a_band_of_pass_rates() -> None:
    rows = [
        row(f"{name}{draw}", problem_id=name, prompt=f"The {name} question of {name} people, and none of any other.",
            response=f"<think>{' '.join(f'{name}{draw}w{n}' for n in range(20))}</think>4",
            verdict="correct" if draw < right else "wrong")
        for name, right in (("never", 0), ("some", 4), ("always", 8)) for draw in range(8)
    ]  # fmt: skip
    filters = TraceFilters(difficulty=Difficulty(), language=0)
    filter_rows(rows, filters, NONE, 8)
    assert {one.problem_id for one in rows if not one.first_reason} == {"some"}
    assert {one.problem_id for one in rows if one.first_reason == "difficulty"} == {"always"}
    assert next(one.pass_rate for one in rows if one.problem_id == "some").correct == 4  # type: ignore[union-attr]


def test_a_pass_rate_is_of_the_draws_that_have_a_verdict() -> None:
    """Four right, one wrong and one unread of eight; the two others say nothing: 4/6, in the band up to 0.7, and not
    4/8 of a problem with eight draws."""
    verdicts = ["correct"] * 4 + ["wrong", "unparsed", "broken", "timed_out"]
    rows = [
        row(f"r{n}", problem_id="p", prompt="One problem.", verdict=one,
            response=f"<think>{' '.join(f'w{n}x{k}' for k in range(9))}</think>4")
        for n, one in enumerate(verdicts)
    ]  # fmt: skip
    rows += [row("unjudged", problem_id="q", verdict="")]
    filters = TraceFilters(language=0, difficulty=Difficulty(above=0.6, at_most=0.7, min_draws=6))
    ledger = filter_rows(rows, filters, NONE, 8)
    assert {(one.pass_rate.correct, one.pass_rate.drawn) for one in rows[:8] if one.pass_rate} == {(4, 6)}
    assert (ledger.kept, ledger.stopped["difficulty"]) == (4, 0)
    assert rows[8].pass_rate is not None
    assert rows[8].pass_rate.drawn == 0
    for one in rows:
        one.pass_rate = None
    few = TraceFilters(language=0, difficulty=Difficulty(above=0.6, at_most=0.65, min_draws=7))
    assert filter_rows(rows, few, NONE, 8).kept == 4  # six verdicts are fewer than seven: not judged


def test_the_cap_keeps_the_shortest_and_the_most_different() -> None:
    texts = ["a b c d e f", "a b c d e f g", "u v w x y z q"]
    rows = [
        row(f"r{n}", problem_id="p", prompt="One problem.", response=f"<think>{text}</think>4", think_tokens=10 + n)
        for n, text in enumerate(texts)
    ]
    filter_rows(rows, TraceFilters(language=0), NONE, 2)
    assert {one.id for one in rows if not one.first_reason} == {"r0", "r2"}


def test_a_repetition_filter_that_is_wrong_for_the_data_is_refused() -> None:
    block = " ".join(f"w{number}" for number in range(40))
    rows = [row(f"r{n}") for n in range(97)]
    rows += [row(f"x{n}", response=f"<think>{block} {block} {block}</think>4") for n in range(3)]
    with pytest.raises(UsageError, match=r"would stop 3 of 100 correct, finished rows.*x0, x1, x2.*raise filters"):
        filter_rows(rows, TraceFilters(near_duplicate=1), NONE, 4)
    filter_rows(rows, TraceFilters(near_duplicate=1, repetition=1), NONE, 4)


def test_repetition_and_forms() -> None:
    block = " ".join(f"w{number}" for number in range(32))
    assert repeated(f"{block} {block} {block}")[1]
    assert not repeated(f"{block} {block}")[1]
    assert not repeated("one two three")[1]
    assert repeated("again " * 200) == (pytest.approx(1 - 1 / 181), True)
    assert has_form("<think>a</think><answer>4</answer>", "tags")
    assert not has_form("<think>a</think>4", "tags")
    assert has_form("<think>a</think>so \\boxed{4}", "boxed")
    assert has_form("anything", "none")
    assert not has_form("<think>a</think><answer></answer>", "think")


def test_candidates_are_proved_by_their_shingles() -> None:
    base = [f"w{number}" for number in range(60)]
    texts = {"a": " ".join(base), "b": " ".join([*base[:59], "other"]), "c": " ".join(reversed(base)), "d": "x y"}
    assert near_duplicates(texts, 0.8) == {"b": "a"}
    shapes = {key: grams(normal_words(text), 5) for key, text in texts.items()}
    assert jaccard(shapes["a"], shapes["b"]) == pytest.approx(55 / 57)
    assert near_duplicates(texts, 0.99) == {}  # the canary: it is a threshold
    assert near_duplicates({"a": "one two", "b": "One  two!"}, 1.0) == {"b": "a"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is (2+3)*4?", "What is 2+(3*4)?"), ("Compute 7%", "Compute 7!"), ("Compute n!", "Compute n"),
        ("Solve |x| <= 3", "Solve x <= 3!"), ("x ≤ 3 and y ≤ 5", "x ≥ 3 and y ≥ 5"), ("x \\ne 3", "x = 3"),
        ("x²", "x2"), ("x_1", "x1"), ("1.5 m", "1,5 m"), ("1.5 m", "15 m"), ("x^{2+1}", "x^2+1"), ("f(x)", "f'(x)"),
        ("3:4", "3/4"), ("√2", "2"), ("x \\in A", "x \\notin A"), ("a \\lt b", "a \\gt b"), ("\\{1,2\\}", "(1,2)"),
        ("1 \\\\ 2 & 3", "1 & 2 \\\\ 3"),
    ],
)  # fmt: skip
def test_signs_that_carry_meaning_tell_problems_apart(one: str, other: str) -> None:
    assert exact_words(one) != exact_words(other)
    for threshold in (1.0, 0.9):
        assert near_duplicates({"a": one, "b": other}, threshold) == {}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Solve $x \\le 3$.", "solve  X<=3"), ("x^{2}", "x²"), ("\\dfrac{1}{2}", "\\frac{1}{2}"), ("5\\%", "5 %"),
        ("½", "1/2"), ("\\left(2+3\\right)", "( 2 + 3 )"), ("x − 1", "x-1"), ("3 : 4", "3:4"), ("5 !", "5!"),
        ("\\text{two apples}", "Two apples!"), ("(1, 2)", "(1,2)"), ("a \\cdot b", "a · b"), ("don’t", "don't"),
        ("\\(f'(x)\\)", "$f^{\\prime}(x)$".replace("^{\\prime}", "’")), ("1 \\\\ 2", "1\\\\2"), ("a, b", "a b?"),
    ],
)  # fmt: skip
def test_case_spacing_and_spelling_tell_nothing_apart(one: str, other: str) -> None:
    assert exact_words(one) == exact_words(other)
    assert near_duplicates({"a": one, "b": other}, 1.0) == {"b": "a"}


def test_problems_of_different_gold_answers_are_never_one() -> None:
    """The same words and the same response; the third says no gold answer, so that it may be any of them."""
    same = {"prompt": "How many legs have all the animals in the picture?", "response": GOOD}
    golds: list[object] = ["4", " 4 ", "", "5", ["4", "5"], {"asserts": ["f(1) == 2"]}]
    for threshold in (0.8, 1.0):
        rows = [row(f"{n}", reference=gold, problem_id=f"p{n}", **same) for n, gold in enumerate(golds)]
        filter_rows(rows, TraceFilters(near_duplicate=threshold), NONE, 4)
        assert [one.id for one in rows if not one.first_reason] == ["0", "3", "4", "5"]
        assert [one.first_reason for one in rows if one.first_reason] == ["duplicate"] * 2
        rows = [row(f"{n}", reference=gold, problem_id=f"p{n}", **{**same, "response": f"{GOOD} {n}"})
                for n, gold in enumerate(golds)]  # fmt: skip
        filter_rows(rows, TraceFilters(near_duplicate=threshold), NONE, 4)
        assert [one.id for one in rows if not one.first_reason] == ["0", "3", "4", "5"]


def options(**filters: object) -> SetOptions:
    return SetOptions(filters=TraceFilters(**filters), keep_per_problem=2, keep_rejected=True)  # type: ignore[arg-type]


def test_a_set_is_the_same_bytes_and_its_card_recounts(tmp_path: Path) -> None:
    benchmark = tmp_path / "aime24.jsonl"
    benchmark.write_text(json.dumps({"problem": QUESTION}) + "\n")
    more = {"decontaminate": Decontamination(against=(str(benchmark),))}
    for name in ("a", "b"):
        rows = planted()
        random.Random(name).shuffle(rows)
        write_set(rows, tmp_path / name / "set", options(**more))
    for file in ("traces.jsonl", "traces_rejected.jsonl", "card.json", "README.md"):
        assert (tmp_path / "a/set" / file).read_bytes() == (tmp_path / "b/set" / file).read_bytes(), file
    kept, stopped = (list(read_rows(tmp_path / "a/set" / file)) for file in ("traces.jsonl", "traces_rejected.jsonl"))
    card = json.loads((tmp_path / "a/set/card.json").read_text())
    assert card["rows"] == {"drawn": len(kept) + len(stopped), "kept": len(kept)}
    assert card["stopped"] == {name: Counter(one.first_reason for one in stopped)[name] for name in ORDER}
    assert card["tokens"] == sum(one.tokens for one in kept)
    assert card["benchmarks"]["aime24"] == {"questions": 1, "n": 10, "hits": 1}
    assert "Paraphrases" in (tmp_path / "a/set/README.md").read_text()


def test_check_finds_one_flipped_verdict(tmp_path: Path) -> None:
    write_set(planted(), tmp_path / "set", options())
    assert check_set(tmp_path / "set").faults == ()
    path = tmp_path / "set/traces.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    bent = json.loads(lines[0])
    bent["reference"] = "5"
    path.write_text("".join([json.dumps(bent) + "\n", *lines[1:]]))
    found = check_set(tmp_path / "set")
    assert any(f"row {bent['id']}: its verdict is correct, and math says wrong now" in one for one in found.faults)
    assert any("sha256" in one for one in found.faults)
    done = CliRunner().invoke(app, ["traces", "check", str(tmp_path / "set")])
    assert done.exit_code == 1
    assert bent["id"] in done.output
    with pytest.raises(UsageError, match="is no folder of traces"):
        check_set(tmp_path)


def test_check_reports_how_often_a_verifier_takes_a_wrong_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(f"r{at}", reference=gold, response=GOOD.replace("{4}", f"{{{gold}}}").replace("hand", f"hand {at}"))
            for at, gold in enumerate(("4", "-17", "\\frac{3}{8}", "x^2+1", "29.5"))]  # fmt: skip
    write_set(rows, tmp_path / "set", options())
    found = check_set(tmp_path / "set")
    assert found.faults == ()
    assert found.perturbed == {"math": (5, 0)}
    done = CliRunner().invoke(app, ["traces", "check", str(tmp_path / "set")])
    assert "math: 0 of 5 correct answers are correct too where the gold answer is one more" in done.output
    # canary: a verifier that takes everything
    monkeypatch.setattr("rlreason.traces.sets.verdict_of", lambda _: "correct")
    assert check_set(tmp_path / "set").perturbed == {"math": (5, 5)}


def test_exports_load_in_datasets_and_come_back(tmp_path: Path) -> None:
    import datasets

    rows = planted()
    filter_rows(rows, TraceFilters(), NONE, 2)
    kept = [one for one in rows if not one.first_reason]
    for form, suffix in (("messages", "jsonl"), ("openthoughts", "parquet"), ("openr1", "parquet")):
        path = tmp_path / f"{form}.{suffix}"
        count = export_rows(kept, path, form)
        kind = "json" if suffix == "jsonl" else "parquet"
        loaded = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
        assert len(loaded) == count
        again = list(read_traces_of(path, form))
        assert sorted(one.response for one in again) == sorted(one.response for one in kept)
        assert {one.prompt for one in again} == {one.prompt for one in kept}
    write_set(rows, tmp_path / "set", options())
    done = CliRunner().invoke(app, ["traces", "export", str(tmp_path / "set"), str(tmp_path / "again.jsonl")])
    assert f"{len(kept)} lines of messages" in done.output
    lines = [(tmp_path / name).read_text().splitlines() for name in ("again.jsonl", "messages.jsonl")]
    assert sorted(lines[0]) == sorted(lines[1])
    assert {one.verdict for one in read_traces_of(tmp_path / "openr1.parquet", "openr1")} == {"correct"}
    with pytest.raises(UsageError, match=r"known are openr1, openthoughts, messages"):
        export_rows(kept, tmp_path / "x.jsonl", "sharegpt")
    (tmp_path / "bad.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    with pytest.raises(UsageError, match=r"bad.jsonl, row 1: not a row of messages.*assistant"):
        list(read_traces_of(tmp_path / "bad.jsonl", "messages"))


class Alive(TraceRow):
    """Rows that say how many of them there are at once."""

    now: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def model_post_init(self, _: Any, /) -> None:
        Alive.now += 1
        Alive.most = max(Alive.most, Alive.now)

    def __del__(self) -> None:
        Alive.now -= 1


def test_few_rows_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 rows of 60 problems, five each, of which the cap reads one problem again; written and checked."""
    rows = [row(f"r{n:03d}", problem_id=f"p{n % 60}", prompt=f"What is {n % 60} plus two times {n % 60}?",
                response=GOOD.replace("hand", f"hand of {n} {'very ' * (n % 7)}")) for n in range(300)]  # fmt: skip
    (tmp_path / "draws.jsonl").write_text("".join(one.as_line() for one in rows[:150]) + "\n"
                                          + "".join(one.as_line() for one in rows[150:]))  # fmt: skip
    write_set(rows, tmp_path / "a" / "set", options(near_duplicate=1))
    monkeypatch.setattr("rlreason.traces.rows.TraceRow", Alive)
    with row_file(tmp_path / "draws.jsonl") as file:
        ledger = write_set(file, tmp_path / "b" / "set", options(near_duplicate=1))
    assert (ledger.drawn, ledger.kept, ledger.stopped["cap"]) == (300, 120, 180)
    assert (ledger.problems, ledger.problems_kept) == (60, 60)
    assert check_set(tmp_path / "b" / "set").faults == ()
    assert 0 < Alive.most <= 5
    for name in ("traces.jsonl", "traces_rejected.jsonl", "card.json", "README.md"):
        assert (tmp_path / "a/set" / name).read_bytes() == (tmp_path / "b/set" / name).read_bytes(), name


def test_a_lone_surrogate_is_written_and_read(tmp_path: Path) -> None:
    rows = [row("odd", response=GOOD.replace("hand", "hand \ud83d")), row("even")]
    write_set(rows, tmp_path / "set", options())
    assert [one.response for one in read_rows(tmp_path / "set/traces.jsonl")] == [rows[1].response, rows[0].response]
    assert check_set(tmp_path / "set").faults == ()
    (tmp_path / "bad.jsonl").write_bytes(b'{"id": "a"\n')
    with pytest.raises(UsageError, match=r"bad\.jsonl, line 1: the line: Invalid JSON"):
        list(read_rows(tmp_path / "bad.jsonl"))


def real_rows() -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for name in ("sky_t1_traces", "prime_rl_rollouts", "gsm8k_model_solutions"):
        path = DATA / f"{name}.jsonl"
        if not path.exists():
            pytest.skip(f"{path.name} is not there")
        found += [{**json.loads(line), "source": name} for line in path.read_text(encoding="utf-8").splitlines()]
    return found[:2000]


def only_once(write: Callable[[Path, Iterable[str]], None]) -> Callable[[Path, Iterable[str]], None]:
    """Writes one file, and then the process is killed."""
    calls = iter([write])

    def killed(path: Path, lines: Iterable[str]) -> None:
        for one in calls:
            return one(path, lines)
        raise KeyboardInterrupt

    return killed


def test_two_thousand_real_rows(tmp_path: Path) -> None:
    """The command on real traces: an exact ledger, every planted benchmark question caught, the same bytes again, and
    the same after it was killed."""
    rows = real_rows()
    first = json.loads((DATA / "aime24.jsonl").read_text(encoding="utf-8").splitlines()[0])["prompt"]
    dressed = [first, first.upper(), first.replace(" ", "  "), first.replace("\\frac", "\\dfrac")]
    rows += [
        {"id": f"planted-{n}", "prompt": text, "response": GOOD, "answer": "4", "source": "planted"}
        for n, text in enumerate(dressed)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")

    def imported(name: str) -> Result:
        arguments = [
            "traces", "import", str(tmp_path / "in.jsonl"), str(tmp_path / name / "set"), "--format", "rows",
            "--against", str(DATA / "aime24.jsonl"), "--keep-per-problem", "2",
        ]  # fmt: skip
        return CliRunner().invoke(app, arguments)

    done = imported("a")
    assert done.exit_code == 0, done.output
    with pytest.MonkeyPatch.context() as patch:  # killed behind the first file: what is there is no set
        patch.setattr(sets.atomic, "write_lines", only_once(sets.atomic.write_lines))
        assert imported("b").exit_code != 0
        assert [one.name for one in (tmp_path / "b/set").iterdir()] == ["traces.jsonl"]
    done = imported("b")
    assert done.exit_code == 0, done.output
    assert "is not empty" in str(imported("b").exception)
    for file in ("traces.jsonl", "traces_rejected.jsonl", "card.json", "README.md"):
        assert (tmp_path / "a/set" / file).read_bytes() == (tmp_path / "b/set" / file).read_bytes()
    kept, stopped = (list(read_rows(tmp_path / "a/set" / file)) for file in ("traces.jsonl", "traces_rejected.jsonl"))
    card = json.loads((tmp_path / "a/set/card.json").read_text())
    assert len(kept) + len(stopped) == len(rows) == card["rows"]["drawn"]
    assert sum(card["stopped"].values()) == len(stopped)
    assert len(kept) > 50
    assert not [one for one in kept if one.source == "planted"]
    caught = [one for one in stopped if one.source == "planted" and one.filters.get("contamination") == 1.0]
    assert len(caught) == len(dressed)
    assert check_set(tmp_path / "a/set").faults == ()


THOUGHT = "<think>we add the two numbers</think>\\boxed{4}"


def imported(tmp_path: Path, lines: list[object], *arguments: str, form: str = "rows") -> Result:
    """What the command says of rows, text as it is."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return CliRunner().invoke(app, ["traces", "import", str(path), str(tmp_path / "set"), "--format", form, *arguments])


@pytest.mark.parametrize(
    ("form", "line", "words"),
    [
        ("messages", {"messages": [{"role": "system", "content": "s"}, {"role": "assistant", "content": "hi"}]},
         "messages has no turn of the user"),
        ("messages", {"messages": [{"role": "user", "content": "q", "info": "web"},
                                   {"role": "assistant", "content": THOUGHT}]}, "info of a turn must be a table"),
        ("messages", {"messages": [{"role": "tool", "content": "q"}, {"role": "assistant", "content": THOUGHT}]},
         "role: Input should be 'system', 'user' or 'assistant'"),
        ("messages", {"messages": 4}, "messages must be a list, not 4"),
        ("messages", {"messages": ["q", "a"]}, "string indices must be integers"),
        ("messages", {"prompt": "q"}, "it has no 'messages'"),
        ("rows", {"prompt": "q", "response": THOUGHT, "answer": {"a": 1}}, "answer must be text, a number or a list"),
        ("rows", {"prompt": "q", "response": None}, "response must be text, not None"),
        ("rows", {"prompt": "q", "response": THOUGHT + "\ud83d", "answer": "4"}, "it holds \\ud83d, half"),
        ("openr1", {"problem": "q", "generations": THOUGHT}, "generations must be a list"),
        ("openr1", {"problem": "q", "generations": [None]}, "generations must be texts, not None"),
        ("openr1", {"problem": "q", "generations": [THOUGHT], "finish_reasons": ["stop", "stop"]},
         "of 1 generations, it has 1 of correctness_math_verify, 2 of finish_reasons"),
        ("openthoughts", {"conversations": [{"from": "human", "value": 4}]}, "value must be text, not 4"),
    ],
)  # fmt: skip
def test_a_row_of_another_form_is_named_with_its_fix(tmp_path: Path, form: str, line: object, words: str) -> None:
    done = imported(tmp_path, ["", line], form=form)
    assert isinstance(done.exception, UsageError)
    told = str(done.exception)
    assert told.startswith(f"{tmp_path}/in.jsonl, row 2: not a row of {form}: ")
    assert words in told
    assert "mend the row or leave it out, or name another --format" in told
    assert not (tmp_path / "set").exists()


def test_lines_that_are_no_rows(tmp_path: Path) -> None:
    done = imported(tmp_path, [{"prompt": "q", "response": "r"}, '{"prompt": '])
    assert "in.jsonl is no file of JSON lines: row 2 can't be read (Expecting value" in str(done.exception)
    assert "row 1: no table" in str(imported(tmp_path, ["4"]).exception)
    assert "--format rowz" in str(imported(tmp_path, ["4"], form="rowz").exception)
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(UsageError, match=r"bad\.parquet is no Parquet file that can be read"):
        list(read_traces_of(tmp_path / "bad.parquet", "rows"))


def test_numbers_are_gold_answers_and_blank_lines_are_nothing(tmp_path: Path) -> None:
    asked = {"prompt": "What is 2+2?", "response": THOUGHT, "answer": 4}
    done = imported(tmp_path, [asked, "", {**asked, "prompt": "What is 3+1?", "answer": [4, "four"]}, " "])
    assert done.exit_code == 0, done.output
    rows = list(read_rows(tmp_path / "set/traces.jsonl"))
    assert [(one.id, one.reference, one.verdict) for one in rows] == [
        ("00000001-000", "4", "correct"), ("00000003-000", ["4", "four"], "correct"),
    ]  # fmt: skip
    assert check_set(tmp_path / "set").faults == ()


def test_filters_of_an_import_are_chosen(tmp_path: Path) -> None:
    bare = {"prompt": "What is 2+2?", "response": "We add the two. The answer is \\boxed{4}", "answer": "4"}
    for pair, words in (
        ("formt=none", "unknown key formt; did you mean 'format'?"),
        ("repetition", "write NAME=VALUE, such as repetition=0.4"),
        ("repetition=2", "repetition: must be at most 1, not 2"),
    ):
        assert words in str(imported(tmp_path, [], "--filter", pair).exception or "")
    done = imported(tmp_path, [bare] * 3)
    assert isinstance(done.exception, UsageError)
    assert "none of 3 rows is kept, and the filter format stopped most of them, 3, so nothing was written" in str(
        done.exception
    )
    assert "--filter format=none" in str(done.exception)
    assert not (tmp_path / "set").exists()
    done = imported(tmp_path, [bare] * 3, "--filter", "format=none", "--filter", "difficulty.above=0.1")
    assert done.exit_code == 0, done.output
    card = json.loads((tmp_path / "set/card.json").read_text())
    assert (card["filters"]["format"], card["filters"]["difficulty"]["above"]) == ("none", 0.1)
    assert card["rows"] == {"drawn": 3, "kept": 1}


@pytest.mark.parametrize(
    ("card", "words"),
    [("{}", "card.json, rows: Field required"), ("[]", "card.json, the file: Input should be"), ("{", "Invalid JSON"),
     ('{"rows": {"kept": 1}, "tokens": "many"}', "card.json, tokens: Input should be a valid integer")],
)  # fmt: skip
def test_a_card_that_is_none_is_no_set(tmp_path: Path, card: str, words: str) -> None:
    (tmp_path / "card.json").write_text(card)
    (tmp_path / "traces.jsonl").write_text("")
    with pytest.raises(UsageError, match=r"is no folder of traces: card\.json") as caught:
        check_set(tmp_path)
    assert words in str(caught.value)
