"""On-policy distillation for real, very small: teachers in the trainer and elsewhere, routes, mixes, resumed runs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from rlreason.check import check
from rlreason.config import TrainingStage, load
from rlreason.errors import HealthStop, UsageError
from rlreason.job import JobOptions, run_job

SHAPE = """hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
intermediate_size = 64
tie_word_embeddings = true
"""
BASE = f"""
name = "opd"
seed = 1
[policy]
model_type = "qwen3"
[policy.model]
{SHAPE}
[student]
model_type = "qwen3"
[student.model]
{SHAPE}
[data]
train = "arithmetic"
options = {{ min_terms = 2, max_terms = 3, max_total = 9, negatives = false }}
[trainer]
save_every = 2
[cluster]
threads = 1
[teacher.main]
model = "cold_start"
TEACHER
[[stage]]
kind = "sft"
name = "cold_start"
model = "policy"
demonstrations = 200
steps = 40
batch_size = 32
optimizer = {{ lr = 1e-2 }}
STAGES
"""
STAGE = """
[[stage]]
kind = "opd"
name = "{name}"
steps = {steps}
problems_per_step = 4
samples_per_problem = 2
max_tokens = 24
optimizer = {{ lr = 1e-2 }}
{more}
"""


def stage(name: str = "opd", more: str = "", steps: int = 3) -> str:
    return STAGE.format(name=name, more=more, steps=steps)


def write(folder: Path, stages: str, teacher: str = "") -> Path:
    path = folder / "recipe.toml"
    path.write_text(BASE.replace("TEACHER", teacher).replace("STAGES", stages), encoding="utf-8")
    return path


def run(folder: Path, stages: str, teacher: str = "", out: str = "run") -> Path:
    path = write(folder, stages, teacher)
    options = JobOptions(folder=folder / out, command="test")
    run_job(load(path), path, options, Console(file=io.StringIO()))
    return folder / out


def metrics(run_: Path, name: str) -> list[dict[str, float]]:
    (path,) = run_.glob(f"stages/*-{name}/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def entry(run_: Path, name: str) -> dict:
    stages = json.loads((run_ / "manifest.json").read_text())["stages"]
    return next(one for one in stages if one["name"] == name)


#: The teacher in four places: what they say is the same, or a bound of it.
PLACES = """
[teacher.far]
model = "cold_start"
where = "worker"
[teacher.words]
model = "cold_start"
where = "worker"
payload = "topk"
[teacher.again]
model = "cold_start"
"""
AGAIN = """
[teacher.again]
model = "cold_start"
"""


#: Variants of one stage, each in a run of its own, so that all draw the same rows.
VARIANTS = {
    "here": 'teacher = "main"',
    "there": 'teacher = "far"',
    "few": 'teacher = "words"\nsupport = "tail"\nk = 4',
    "all": 'teacher = "words"\nsupport = "tail"\nk = 1000',
    "part": 'teacher = "words"\npreset = "opd_unbiased"',
    "one": 'teacher = "words"\npreset = "opd_sampled"',
    "two": 'route = { "terms=2" = "main", "terms=3" = "again" }',
    "crossed": 'route = { "terms=2" = "main", "terms=3" = "untaught" }',
}
#: The teachers of those variants that have others than ``PLACES``.
TEACHERS = {"two": AGAIN, "crossed": '[teacher.untaught]\nmodel = "policy"\n'}


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """The first step of each."""
    folder = tmp_path_factory.mktemp("variants")
    found = {}
    for name, more in VARIANTS.items():
        made = run(folder, stage("opd", more, steps=1), TEACHERS.get(name, PLACES), out=name)
        (found[name],) = metrics(made, "opd")
        asked = ["policy"] if name == "crossed" else []
        assert entry(made, "opd")["parents"] == ["student", "cold_start", *asked]
    return found


def test_a_teacher_elsewhere_teaches_the_same(variants: dict[str, dict[str, float]]) -> None:
    """Equal but for the rounding of states in float32; fewer words are a bound, and the canary of that."""
    here = variants["here"]
    for name in ("there", "all", "two"):
        assert variants[name]["divergence"] == pytest.approx(here["divergence"], rel=1e-4)
        assert variants[name]["grad_norm"] == pytest.approx(here["grad_norm"], rel=1e-3)
    few = variants["few"]
    assert 0 < few["divergence"] < here["divergence"] - 1e-3
    assert "kl/reverse" not in few
    assert few["kl/reverse_at_least"] == pytest.approx(few["divergence"])
    assert 0 < few["tail/student"] < 1


def test_each_problem_is_scored_by_its_own_teacher(variants: dict[str, dict[str, float]]) -> None:
    """Two equal teachers are one; where one of them is another model, rows that are its own have other values."""
    assert variants["two"]["divergence"] == pytest.approx(variants["here"]["divergence"], rel=1e-4)
    assert variants["crossed"]["divergence"] != pytest.approx(variants["here"]["divergence"], rel=0.1)  # canary


def test_a_teacher_in_an_actor_teaches_the_same(
    variants: dict[str, dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over Ray it has a place of the run's plan, and what it prints a log of the run."""
    pytest.importorskip("ray", reason="Ray is not installed")
    over_ray = 'threads = 1\nkind = "ray"\nrollout_workers = 1\n[sampler]\nengine = "transformers"'
    monkeypatch.setitem(globals(), "BASE", BASE.replace("threads = 1", over_ray))
    made = run(tmp_path, stage("opd", VARIANTS["there"], steps=1), PLACES)
    (found,) = metrics(made, "opd")
    for key in ("divergence", "grad_norm", "length/mean"):
        assert found[key] == pytest.approx(variants["there"][key], rel=1e-4)
    assert (made / "logs" / "teacher-far-0.log").is_file()


def test_estimates_are_of_the_same_rows(variants: dict[str, dict[str, float]]) -> None:
    for name in ("part", "one"):
        row = variants[name]
        assert row["length/mean"] == variants["here"]["length/mean"]
        assert row["advantage/mean"] == pytest.approx(variants["here"]["advantage/mean"], rel=1e-4)
        assert row["grad_norm"] > 0


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stages = [
        stage("here", "", steps=2),
        stage("jsd", "divergence = { jsd = 0.3 }", steps=1),
        stage("rewarded", "reward_weight = 0.5", steps=2),
        stage("fixed", 'preset = "fixed_negative"', steps=2),
        stage("opsa", 'preset = "opsa"', steps=2),
    ]
    return run(tmp_path_factory.mktemp("places"), "".join(stages))


def test_what_a_step_reports(places: Path) -> None:
    rows = metrics(places, "here")
    for row in rows:
        assert row["divergence"] == pytest.approx(row["kl/reverse"])
        assert min(row["kl/reverse"], row["kl/forward"], row["kl/jsd"]) > 0
        quarters = sum(row[f"divergence/quarter{number}"] for number in (1, 2, 3, 4))
        assert quarters == pytest.approx(row["divergence"], rel=1e-6)
        assert row["excluded/tokens"] == 0
        assert row["loss"] == pytest.approx(row["divergence"], rel=1e-4)
    assert entry(places, "here")["parents"] == ["student", "cold_start"]
    assert entry(places, "here")["trained_tokens"] == entry(places, "here")["sampled_tokens"]


def test_other_losses_of_the_stage(places: Path) -> None:
    jsd = metrics(places, "jsd")[0]
    assert jsd["divergence"] != pytest.approx(jsd["kl/jsd"])  # of β = 0.3, not of one half
    assert "loss/reward" in metrics(places, "rewarded")[0]
    for name in ("fixed", "opsa"):
        row = metrics(places, name)[0]
        assert row["tokens/chosen"] == pytest.approx(0.2, abs=0.05)
        assert row["grad_norm"] > 0
        assert entry(places, name)["parents"] == ["student"]


#: Of a student of experts in place of the dense one.
SPARSE = """model_type = "qwen3_moe"
[student.model]
num_experts = 4
num_experts_per_tok = 2
moe_intermediate_size = 32
"""


def test_a_student_of_experts_says_where_its_tokens_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a teacher, with GRPO's gradient beside it, and without a teacher."""
    before, student, rest = BASE.partition("[student]\n")
    sparse = before + student + rest.replace('model_type = "qwen3"\n[student.model]\n', SPARSE, 1)
    monkeypatch.setitem(globals(), "BASE", sparse)
    stages = [
        stage("here", "", steps=2),
        stage("rewarded", "reward_weight = 0.5", steps=1),
        stage("opsa", 'preset = "opsa"', steps=1),
    ]
    made = run(tmp_path, "".join(stages))
    for name, steps in (("here", 2), ("rewarded", 1), ("opsa", 1)):
        (file,) = made.glob(f"stages/*-{name}/experts.jsonl")
        layers = [json.loads(line) for line in file.read_text().splitlines()]
        assert [row["step"] for row in layers] == list(range(steps))
        for row, found in zip(metrics(made, name), layers, strict=True):
            assert sum(found["load"][0]) == pytest.approx(1.0, abs=1e-5)
            assert row["experts/entropy"] == row["experts/entropy_worst"] == found["entropy"][0]
            assert row["experts/max_violation"] == pytest.approx(4 * max(found["load"][0]) - 1, abs=1e-4)
            assert "experts/agreement" not in row  # nobody said where its tokens were to go
    assert not any(key.startswith("experts/") for key in metrics(made, "cold_start")[0])  # the dense canary
    assert not list(made.glob("stages/*-cold_start/experts.jsonl"))


MIX = """
[[stage]]
kind = "reject"
name = "traces"
model = "cold_start"
problems = 200
samples_per_problem = 4
max_tokens = 32
"""


def test_a_mix_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GKD: half of the rows are the teacher's traces. Killed behind any step, it ends as if nothing had happened."""
    from rlreason.stages.opd import OpdWork

    stages = MIX + stage("gkd", 'preset = "gkd"', steps=4)
    whole = run(tmp_path, stages, out="whole")
    learn = OpdWork._learn

    def breaks(self: OpdWork, step: int, *rest: object) -> dict[str, float]:
        if step == 3:
            raise OSError("the machine is gone")
        return learn(self, step, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(OpdWork, "_learn", breaks)
    with pytest.raises(OSError, match="the machine is gone"):
        run(tmp_path, stages, out="broken")
    monkeypatch.setattr(OpdWork, "_learn", learn)
    path = tmp_path / "recipe.toml"
    run_job(
        load(path), path, JobOptions(folder=tmp_path / "broken", command="test", resume=True),
        Console(file=io.StringIO()),
    )  # fmt: skip
    assert entry(tmp_path / "broken", "gkd")["resumed"] == 1
    assert entry(tmp_path / "broken", "gkd")["sha256"] == entry(whole, "gkd")["sha256"]
    assert entry(whole, "gkd")["parents"] == ["student", "cold_start", "traces"]
    assert entry(whole, "gkd")["trained_tokens"] > entry(whole, "gkd")["sampled_tokens"]


VLLM = """
[teacher.engine]
model = "cold_start"
where = "vllm"
"""


@pytest.mark.parametrize(
    ("more", "teacher", "said"),
    [
        ('divergence = { jsd = 0.0 }', "", 'say divergence = "forward" or "reverse"'),
        ('support = "sampled"\ndivergence = "forward"', "", 'needs support = "full" or "tail"'),
        ('support = "tail"', "", r"""can't be computed from the teacher 'main' \(where = "trainer".*gives full"""),
        ('teacher = "words"', PLACES, r"""which gives tail or unbiased or sampled"""),
        ('teacher = "words"\nsupport = "sampled"\ntemperature = 0.7', PLACES, "use temperature = 1"),
        ('teacher = "words"\nsupport = "sampled"\non_policy = 0.5', PLACES, "needs rows that the student drew"),
        ('teacher = "mian"', "", r"teacher 'mian' has no \[teacher.mian\] table.*main"),
        ("", PLACES, "say which"),
        ('route = { a = "main" }\nweights = { again = 2.0 }', PLACES, "route sends nothing to"),
        ("on_policy = 0.5", "", "of an earlier stage of kind reject"),
        ('route = { a = "main" }', AGAIN, "route sends nothing to the teacher 'again'"),
        ('lambda = 0.5', "", "lambda is called on_policy"),
        ('clamp = 10.0', "", "no value is cut"),
        ("staleness = 1", "", "its rows are the newest weights' own"),
        ('divergence = "k3"', "", "divergence: must be one of forward, reverse or a table"),
        ('divergence = "kl"', "", "divergence: must be one of forward, reverse or a table"),
        ('support = "top_k"', "", "support: must be one of full, tail, unbiased, sampled"),
        ("top_p = 0.9", "", "top_p"),
        ('teacher = "engine"', VLLM, "which gives tail or unbiased or sampled: .*, whose logits are whole"),
        ('teacher = "engine"\nsupport = "tail"', VLLM + "payload = 'hidden'", "vLLM says words"),
        ('preset = "opd_exat"', "", "unknown preset 'opd_exat'.*opd_exact"),
        ('preset = "opsa"\nteacher = "main"', "", "has no teacher"),
        ("reward_weight = 1.0\nsamples_per_problem = 1", "", "needs groups"),
        ("k = 8", "", 'k changes nothing with support = "full": leave it out'),
        ('teacher = "words"\nsupport = "sampled"\nk = 8', PLACES, 'k changes nothing with support = "sampled"'),
        ('preset = "opd_unbiased"\nsupport = "full"', "", 'or preset = "opd_unbiased", which brings it'),
        ("ratio_cap = 3.0", "", 'ratio_cap changes nothing with support = "full"'),
        ("lowest = 0.5", "", 'lowest changes nothing with advantage = "teacher"'),
        ("value = -1.0", "", 'value changes nothing with advantage = "teacher"'),
        ('preset = "opsa"\nvalue = -1.0', "", 'value changes nothing with advantage = "fixed_entropy"'),
        ('preset = "opsa"\nfloor = -40', "", 'floor changes nothing with advantage = "fixed_entropy", which learns'),
        ('preset = "opsa"\ndivergence = "forward"', "", "divergence changes nothing with"),
        ('traces = "kept"', "", "traces changes nothing with on_policy = 1, where all rows"),
    ],
)  # fmt: skip
def test_what_a_recipe_may_not_say(tmp_path: Path, more: str, teacher: str, said: str) -> None:
    text = stage("opd", more)
    if "samples_per_problem = 1" in more:
        text = text.replace("samples_per_problem = 2\n", "")
    with pytest.raises(UsageError, match=said):
        load(write(tmp_path, text, teacher))


def test_a_share_of_general_data_needs_some(tmp_path: Path) -> None:
    student = '[[stage]]\nkind = "distill"\nname = "sft_again"\nsteps = 1\ngeneral_share = 0.2\n'
    with pytest.raises(UsageError, match=r"general_share = 0\.2 is of general, which names no set"):
        load(write(tmp_path, MIX + student))


def test_an_engine_needs_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "BASE", BASE.replace("threads = 1", 'threads = 1\nkind = "inline"'))
    text = stage("opd", 'teacher = "engine"\nsupport = "tail"')
    with pytest.raises(UsageError, match=r"'engine' is an engine in a Ray actor.*say cluster.kind = \"ray\""):
        load(write(tmp_path, text, VLLM))


#: Ways to name the model that a stage begins with: (the stage's, the teacher's, what is said).
STARTS = [
    ('model = "cold_start"', 'model = "cold_start"', "is 'cold_start', which the stage begins with"),
    ('model = "student"', 'model = "student"', "is 'student', which the stage begins with"),
    ('model = "student"', 'model = "policy"', r"\(policy\) and 'student' are both .*/weights"),
    ('model = "student"', 'path = "FOLDER/weights"', r"/weights\) and 'student' are both .*/weights"),
    ('model = "student"', 'path = "weights"', r"/weights\) and 'student' are both .*/weights"),
    ('model = "student"', 'path = "link"', r"/link\) and 'student' are both .*/weights"),
    ('model = "policy"', 'path = "link"', r"/link\) and 'policy' are both .*/weights"),
]


@pytest.mark.parametrize(("start", "teacher", "said"), STARTS)
def test_a_teacher_that_is_the_start_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, teacher: str, said: str
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "weights")
    text = BASE
    for name, path in (("policy", "weights"), ("student", "link")):
        table = f'[{name}]\nmodel_type = "qwen3"\n[{name}.model]\n{SHAPE}'
        assert table in text
        text = text.replace(table, f'[{name}]\npath = "{path}"\n')
    monkeypatch.setitem(globals(), "BASE", text)
    same = "[teacher.same]\n" + teacher.replace("FOLDER", str(tmp_path))
    path = write(tmp_path, stage("opd", f'teacher = "same"\n{start}'), same)
    with pytest.raises(UsageError, match=f"the teacher 'same' .*{said}.*its gradient is 0"):
        check(load(path), tmp_path)


def test_a_teacher_that_is_another_model_is_none_of_these(tmp_path: Path) -> None:
    """Two tables of one shape that are built from nothing have other weights."""
    path = write(tmp_path, stage("opd", 'teacher = "other"'), '[teacher.other]\nmodel = "policy"\n')
    check(load(path), tmp_path)


SETS = """[data.sums]
path = "arithmetic"
options = { min_terms = 2, max_terms = 3, max_total = 9, negatives = false }
[data.numbers]
path = "countdown"
[data.rows]
path = "rows.jsonl"
"""
MIXED = "data = { sums = 0.4, numbers = 0.4, rows = 0.2 }\n"


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ('sums = "main", numbers = "again", rows = "again"', ""),
        ('arithmetic = "main", "numbers=3" = "again", rows = "again"', ""),
        ('sums = "main", numbers = "again", rows = "again", "terms=9" = "main"', ""),  # a task may come to it
        ('sums = "main", countdwn = "again", rows = "again"', "data set 'numbers'.* has no teacher"),
        ('sums = "main", numbers = "again"', r"problem '.*' \(tags .*data set 'rows'.* has no teacher: route knows"),
        ('sums = "main", numbers = "again", rows = "main", countdwn = "again"', "route.countdwn is no .*'countdown'"),
        ('sums = "main", numbers = "again", rows = "main", "term=2" = "main"', "route.term=2 is no tag.*there are: t"),
        ('sums = "main", arithmetic = "again", numbers = "main", rows = "main"', "is routed to main and again"),
    ],
)
def test_routes_are_known_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, route: str, said: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2=", "answer": "3"}\n')
    one = BASE[BASE.index("[data]") : BASE.index("[trainer]")]
    text = BASE.replace(one, SETS).replace("demonstrations = 200\n", 'data = "sums"\n')
    for name in ("policy", "student"):
        text = text.replace(f"[{name}.model]", f'[{name}.tokenizer]\nkind = "bpe"\n[{name}.model]')
    monkeypatch.setitem(globals(), "BASE", text)
    path = write(tmp_path, stage("opd", MIXED + f"route = {{ {route} }}"), AGAIN)
    if not said:
        check(load(path), tmp_path)
        return
    with pytest.raises(UsageError, match=said):
        check(load(path), tmp_path)


def test_a_problem_without_a_teacher_is_said_before_anything_is_drawn(tmp_path: Path) -> None:
    stages = stage("opd", 'route = { "steps=7" = "main" }')
    with pytest.raises(UsageError, match=r"has no teacher: route knows steps=7"):
        run(tmp_path, stages)
    assert not list(tmp_path.glob("run/stages/*"))  # nor a teacher trained


def test_a_step_whose_checks_all_broke_is_recorded_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state before it, its metrics and its rollouts are there; once the reward is mended nothing is there twice."""
    (tmp_path / "bad.py").write_text("def score(problem, completion):\n    return completion.nothing\n")
    plain = BASE.replace("steps = 40", "steps = 1") + '[reward]\n"bad.py:score" = 1.0\n'
    monkeypatch.setitem(globals(), "BASE", plain)
    path = write(tmp_path, stage("opd", 'preset = "fixed_negative"', steps=2))
    with pytest.raises(HealthStop, match=r"stage opd, step 0: every verdict is BROKEN.*bad\.py:2 in score"):
        run_job(load(path), path, JobOptions(folder=tmp_path / "run", command="t"), Console(file=io.StringIO()))
    (row,) = metrics(tmp_path / "run", "opd")
    assert (row["step"], row["verdict/broken"]) == (0, 1.0)
    (log,) = (tmp_path / "run").glob("stages/*-opd/rollouts.jsonl")
    written = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(written) == 8
    assert {one["verdict"] for one in written} == {"broken"}
    assert all(one["rendered_prompt"] for one in written[::2])
    (tmp_path / "bad.py").write_text("def score(problem, completion):\n    return 1.0\n")
    options = JobOptions(folder=tmp_path / "run", command="t", resume=True, accept_changes=True)
    run_job(load(path), path, options, Console(file=io.StringIO()))
    assert [one["step"] for one in metrics(tmp_path / "run", "opd")] == [0, 1]
    written = [json.loads(line) for line in log.read_text().splitlines()]
    assert [one["step"] for one in written] == [0] * 8 + [1] * 8
    assert "broken" not in {one["verdict"] for one in written}


def test_a_broken_teacher_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its NaN is found before the weights change; of a teacher elsewhere a few are left out, many stop."""
    import torch

    from rlreason.trainer import distilling
    from rlreason.trainer.teachers import TeacherScorer

    asked, rows = distilling._asked, TeacherScorer._of_rows

    def broken(*arguments: object) -> object:
        found = asked(*arguments)  # type: ignore[arg-type]
        assert found.hidden_RH is not None
        found.hidden_RH[0] = torch.nan
        return found

    monkeypatch.setattr(distilling, "_asked", broken)
    with pytest.raises(HealthStop, match="no finite divergence"):
        run(tmp_path, stage("opd"), out="here")

    def nothing(self: TeacherScorer, *arguments: object) -> object:
        found = rows(self, *arguments)  # type: ignore[arg-type]
        found["drawn"][:3] = torch.nan
        return found

    monkeypatch.setattr(TeacherScorer, "_of_rows", nothing)
    with pytest.raises(HealthStop, match="no finite divergence"):
        run(tmp_path, stage("opd"), 'where = "worker"', out="there")


@pytest.mark.slow
def test_a_teacher_behind_vllm_teaches_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over Ray, beside one in transformers in an actor: the same rows, the same words, the same loss."""
    pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("vllm", reason="vLLM is not installed")
    wide = BASE.replace("hidden_size = 32", "hidden_size = 64").replace("head_dim = 16", "head_dim = 32")
    over_ray = 'threads = 1\nkind = "ray"\nrollout_workers = 1\n[sampler]\nengine = "transformers"'
    monkeypatch.setitem(globals(), "BASE", wide.replace("threads = 1", over_ray))
    found = {}
    for name, teachers in (("engine", VLLM), ("words", PLACES)):
        more = f'teacher = "{name}"\nsupport = "tail"\nk = 4'
        made = run(tmp_path, stage("opd", more, steps=1), teachers, out=name)
        (found[name],) = metrics(made, "opd")
    for key in ("divergence", "grad_norm", "length/mean", "tail/teacher", "advantage/mean"):
        assert found["engine"][key] == pytest.approx(found["words"][key], rel=1e-3), key
    assert found["engine"]["divergence"] > 1e-2
    assert (tmp_path / "engine" / "logs" / "teacher-engine-0.log").is_file()


@pytest.mark.slow
def test_ranks_learn_what_one_process_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks that hold the student and the very same teacher in shards; tests/trainer/test_ranks.py compares the
    gradients themselves."""
    pytest.importorskip("ray", reason="Ray is not installed")
    one = run(tmp_path, stage("opd", 'teacher = "main"', steps=1), out="one")
    (teacher,) = one.glob("stages/*-cold_start/checkpoint")
    ranks = BASE.replace("save_every = 2\n", "save_every = 2\nranks = 2\n").replace("steps = 40", "steps = 1")
    same = '[teacher.main]\nmodel = "cold_start"'
    assert same in ranks
    monkeypatch.setitem(globals(), "BASE", ranks.replace(same, f'[teacher.main]\npath = "{teacher}"'))
    two = run(tmp_path, stage("opd", 'teacher = "main"', steps=1), out="two")
    ((expected,), (found,)) = (metrics(made, "opd") for made in (one, two))
    for key in ("divergence", "kl/forward", "loss", "grad_norm", "length/mean", "trained_tokens"):
        assert found[key] == pytest.approx(expected[key], rel=1e-5), key


EVALUATED = """
[[stage]]
kind = "grpo"
name = "rewarded"
model = "policy"
steps = 1
problems_per_step = 2
samples_per_problem = 8
max_tokens = 12
reward = { "odd.py:score" = 1.0 }
eval_every = 1
eval_problems = 5
eval_max_tokens = 1
"""


def test_an_evaluation_draws_no_more_than_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five problems with answers of one token each, in every kind of stage, whatever the stage itself draws."""
    (tmp_path / "odd.py").write_text("def score(problem, completion):\n    return sum(completion.token_ids) % 2\n")
    limit = "eval_every = 1\neval_problems = 5\neval_max_tokens = 1\n"
    cold = BASE.replace("steps = 40\n", f"steps = 1\n{limit}")
    monkeypatch.setitem(globals(), "BASE", cold)
    made = run(tmp_path, EVALUATED + stage("opd", 'preset = "fixed_negative"\n' + limit, steps=1))
    for name in ("cold_start", "rewarded", "opd"):
        assert entry(made, name)["work"]["evaluated_tokens"] == 5, name


def test_the_longest_answer_of_an_evaluation_by_default(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, EVALUATED.replace("eval_max_tokens = 1\n", "") + stage("opd")))
    found = {one.name: one.longest_evaluated for one in recipe.stage if isinstance(one, TrainingStage)}
    assert found == {"cold_start": 64, "rewarded": 12, "opd": 24}
