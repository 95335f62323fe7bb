"""The scorer: order, limits, killed workers, crashes, threads; and a parent that goes away."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rlreason.rewards.mix import RewardMix
from rlreason.scorer import PoolScorer
from rlreason.types import Completion, Group, Problem, Verdict

ROOT = Path(__file__).parents[1]
PLUGIN = """
import os, sys, time, signal

def act(problem, completion):
    word = completion.text
    if word == "sleep":
        time.sleep(60)
    if word == "long C call":
        9 ** (9 ** 9)
    if word == "exit":
        os._exit(3)
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "memory":
        bytearray(1 << 40)
    if word == "raise":
        raise SystemError("no")
    if word == "deep":
        return act_deep()
    if word == "print":
        print("in the way", flush=True)
    if word == "torch":
        return float(any(m in sys.modules for m in ("torch", "ray", "vllm", "transformers", "sympy")))
    if word == "pid":
        return float(os.getpid())
    if word == "logprobs":
        return float(int(completion.sampler_logprobs is not None))
    return float(word)

def act_deep():
    return act_deep()
"""


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> RewardMix:
    path = tmp_path_factory.mktemp("plugin") / "act.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return RewardMix.from_table({f"{path}:act": 1.0})


@pytest.fixture(scope="module")
def scorer(mix: RewardMix) -> Iterator[PoolScorer]:
    with PoolScorer(mix, workers=2, timeout=2.0, memory_mb=2048) as scorer:
        yield scorer


def group(*texts: str, name: str = "g") -> Group:
    return Group(
        group_id=name,
        problem=Problem(id=name, prompt="", verifier="math", reference="7"),
        completions_G=tuple(
            Completion(prompt_ids=(1,), token_ids=(1, 2), sampler_logprobs=(-0.1, -0.2), text=t, finish_reason="stop")
            for t in texts
        ),
    )


def test_order_is_kept_over_ragged_groups(scorer: PoolScorer) -> None:
    groups = [group(*(str(10 * i + j) for j in range(i % 5)), name=str(i)) for i in range(60)]
    scored = scorer.score(groups)
    assert [g.scores_G for g in scored] == [tuple(float(10 * i + j) for j in range(i % 5)) for i in range(60)]
    assert [g.group_id for g in scored] == [g.group_id for g in groups]
    assert scored[3].completions_G == groups[3].completions_G
    assert scorer.score([]) == []


def test_a_group_waits_for_its_own_completions_alone(mix: RewardMix) -> None:
    with PoolScorer(mix, workers=2, timeout=60.0) as scorer:
        slow = scorer.submit(group("1", "sleep", name="slow"))
        others = [scorer.submit(group(str(i), "3", name=str(i))) for i in range(20)]
        assert [one.result(30).scores_G for one in others] == [(float(i), 3.0) for i in range(20)]
        assert [one.result(30).group_id for one in others] == [str(i) for i in range(20)]
        assert scorer.submit(group()).result(30).rewards_G == ()
        assert not slow.done()
    with pytest.raises(RuntimeError, match="closed"):
        slow.result(30)


def test_only_the_guilty_row_suffers(scorer: PoolScorer) -> None:
    bad = ["sleep", "exit", "raise", "memory", "deep", "kill", "not a number"]
    texts = [bad[i // 10] if i % 10 == 5 and i // 10 < len(bad) else str(i) for i in range(100)]
    rewards = scorer.score([group(*texts)])[0].rewards_G
    for i, (text, result) in enumerate(zip(texts, rewards, strict=True)):
        if text == "sleep":
            assert (result.score, result.verdict) == (None, Verdict.TIMED_OUT)
            assert 2.0 <= result.seconds < 10
        elif text in bad:
            assert (result.score, result.verdict) == (None, Verdict.BROKEN), text
            assert result.detail
        else:
            assert result.score == float(i)


def test_a_reward_can_t_change_what_others_see(tmp_path: Path) -> None:
    """64 right completions of one problem, scored in chunks that share it, by a reward that edits what it is given."""
    path = tmp_path / "mut.py"
    path.write_text(
        "def spoil(problem, completion):\n    problem.reference['answer'] = '8'\n    return 0.0\n\n"
        "def write(problem, completion):\n    completion.prompt_ids[0] = 5\n    return 0.0\n",
        encoding="utf-8",
    )
    right = group(*["x</think><answer>7</answer>"] * 64)
    right = replace(right, problem=replace(right.problem, reference={"answer": "7"}))
    with PoolScorer(RewardMix.from_table({"accuracy": 1.0, f"{path}:spoil": 1.0}), workers=1) as scorer:
        assert {reward.verdict for reward in scorer.score([right])[0].rewards_G} == {Verdict.CORRECT}
    with PoolScorer(RewardMix.from_table({"accuracy": 1.0, f"{path}:write": 1.0}), workers=1) as scorer:
        rewards = scorer.score([right])[0].rewards_G
    assert {(reward.verdict, reward.verified) for reward in rewards} == {(Verdict.BROKEN, Verdict.CORRECT)}
    assert "read-only" in rewards[0].detail


def test_the_verifier_is_asked_alone(mix: RewardMix) -> None:
    """The recipe's reward kills its worker; an evaluation does not run it."""
    answers = group("exit", "x</think><answer>7</answer>", "x</think><answer>8</answer>")
    with PoolScorer(mix, timeout=20.0) as scorer:
        found = scorer.verifier.score([answers])[0].rewards_G
        assert scorer.score([group("exit")])[0].rewards_G[0].verdict is Verdict.BROKEN
    assert [one.verified for one in found] == [Verdict.UNPARSED, Verdict.CORRECT, Verdict.WRONG]


def test_one_long_c_call_is_killed(scorer: PoolScorer) -> None:
    started = time.monotonic()
    rewards = scorer.score([group("1", "long C call", "2")])[0].rewards_G
    assert [r.score for r in rewards] == [1.0, None, 2.0]
    assert rewards[1].verdict is Verdict.TIMED_OUT
    assert time.monotonic() - started < 10


def test_timeout_score_is_a_policy(mix: RewardMix) -> None:
    with PoolScorer(mix, timeout=0.5, timeout_score=-0.5) as scorer:
        result = scorer.score([group("sleep")])[0].rewards_G[0]
    assert (result.score, result.verdict) == (-0.5, Verdict.TIMED_OUT)


def test_queue_time_does_not_count(mix: RewardMix, tmp_path: Path) -> None:
    path = tmp_path / "nap.py"
    path.write_text(
        "import time\ndef nap(problem, completion):\n    time.sleep(0.2)\n    return 1.0\n", encoding="utf-8"
    )
    with PoolScorer(RewardMix.from_table({f"{path}:nap": 1.0}), workers=1, timeout=1.5) as scorer:
        assert scorer.score([group(*["x"] * 12)])[0].scores_G == (1.0,) * 12


def test_workers_are_light_and_get_no_logprobs(scorer: PoolScorer) -> None:
    assert scorer.score([group("torch", "logprobs")])[0].scores_G == (0.0, 0.0)


def test_a_worker_killed_from_outside_loses_nothing(mix: RewardMix) -> None:
    with PoolScorer(mix, workers=2, timeout=20.0) as scorer:
        victim = int(scorer.score([group("pid")])[0].scores_G[0] or 0)
        killer = threading.Timer(0.05, os.kill, (victim, signal.SIGKILL))
        killer.start()
        texts = [str(i) for i in range(20_000)]
        scores = scorer.score([group(*texts)])[0].scores_G
        killer.join()
    assert scores == tuple(float(i) for i in range(20_000))


def test_works_from_any_thread(scorer: PoolScorer) -> None:
    seen: list[tuple[float | None, ...]] = []
    threads = [
        threading.Thread(target=lambda i=i: seen.append(scorer.score([group(str(i), "3")])[0].scores_G))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [(float(i), 3.0) for i in range(4)]


def test_same_answer_whatever_the_worker_count(mix: RewardMix, scorer: PoolScorer) -> None:
    work = [group(*(str(i) for i in range(200)), "raise")]
    with PoolScorer(mix, workers=1, timeout=2.0) as one:
        a, b = one.score(work)[0].rewards_G, scorer.score(work)[0].rewards_G
    assert [(r.score, r.verdict, r.detail) for r in a] == [(r.score, r.verdict, r.detail) for r in b]


def test_no_process_is_left(mix: RewardMix) -> None:
    scorer = PoolScorer(mix)
    pid = int(scorer.score([group("pid")])[0].scores_G[0] or 0)
    scorer.close()
    assert not Path(f"/proc/{pid}").exists()
    assert scorer.score([group("4")])[0].scores_G == (4.0,)  # a closed scorer starts again
    scorer.close()


@pytest.mark.parametrize("busy", [False, True])
def test_workers_go_when_the_parent_is_killed(mix: RewardMix, busy: bool) -> None:
    code = (
        "import sys, time, threading; from rlreason.rewards.mix import *; from rlreason.scorer import PoolScorer\n"
        "from rlreason.types import *\n"
        f"mix = RewardMix(parts=(MixPart(name={mix.parts[0].spec!r}, weight=1.0),))\n"
        "s = PoolScorer(mix, timeout=300)\n"
        "g = lambda t: [Group(group_id='g', problem=Problem(id='g', prompt='', verifier='', reference=''),\n"
        "  completions_G=(Completion.from_text(t),))]\n"
        "print(int(s.score(g('pid'))[0].scores_G[0]), flush=True)\n"
        f"s.score(g('long C call')) if {busy} else time.sleep(300)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
