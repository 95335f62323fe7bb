"""Group and step rewards, asynchronous ones many at a time, limits of a reward, gates, schedules and sources; a reward
that hangs, one that crashes and one that leaks; reward servers and reward models."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rlreason.rewards.mix import RewardMix
from rlreason.rewards.running import Limits, score_rows
from rlreason.scorer import PoolScorer
from rlreason.types import Completion, Group, Message, Problem, RewardResult, Verdict

PLUGIN = """
import asyncio, os, time
from rlreason.rewards.registry import reward
from rlreason.types import RewardResult, Verdict

under_way, most = 0, 0

async def judge(problem, completion):
    global under_way, most
    under_way += 1
    most = max(most, under_way)
    await asyncio.sleep(0.05)
    under_way -= 1
    return RewardResult(score=float(completion.text), verdict=Verdict.CORRECT, parts={"most": most})

async def mixed(problem, completion):
    match completion.text:
        case "blocks": time.sleep(60)
        case "dies": os._exit(2)
        case text if text.startswith("holds"): 9 ** (9 ** 9)
        case "waits": await asyncio.sleep(60)
        case "raises": raise KeyError("no")
        case "fills": bytearray(1 << 40)
    await asyncio.sleep(0.01)
    return float(completion.text)

@reward("patient", seconds=30)
async def patient(problem, completion):
    return float(completion.text)

def rank(problem, completions):
    order = sorted(float(one.text) for one in completions)
    return [order.index(float(one.text)) / len(order) for one in completions]

async def rank_later(problem, completions, *, verdicts, step):
    await asyncio.sleep(0.01)
    return [float(verdict == "correct") + step for verdict in verdicts]

@reward("whole", per="step")
def whole(problems, completions):
    assert len(problems) == len(completions)
    return [float(len(completions))] * len(completions)

kept = []

@reward("leaks", memory_mb=700)
def leaks(problem, completion):
    kept.append(bytearray(60 << 20))
    return 1.0

@reward("quick", seconds=0.4, deterministic=False)
def quick(problem, completion):
    if completion.text == "3":
        time.sleep(60)
    return 1.0

def crashes(problem, completion):
    if completion.text == "3":
        os._exit(9)
    return 1.0

def half(problem, completion):
    return 0.5

def few(problem, completions):
    return [1.0]

called = 0

def counted(problem, completion):
    global called
    called += 1
    return float(called)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugin") / "a.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return str(path)


def group(name: str, *texts: str, **changes: Any) -> Group:
    problem = Problem(id=name, prompt="", verifier="math", reference="7")
    return Group(
        group_id=f"grpo/2/{name}",
        problem=replace(problem, **changes),
        completions_G=tuple(
            Completion(prompt_ids=(1,), token_ids=(1,) * (i + 1), sampler_logprobs=None, text=t, finish_reason="stop")
            for i, t in enumerate(texts)
        ),
    )


def scored(table: dict[str, object], *groups: Group, **limits: Any) -> list[tuple[RewardResult, ...]]:
    with PoolScorer(RewardMix.from_table(table), **limits) as scorer:
        return [one.rewards_G for one in scorer.score(groups)]


def scores(found: list[tuple[RewardResult, ...]]) -> list[list[float | None]]:
    return [[one.score for one in rewards] for rewards in found]


def test_async_rewards_are_many_at_a_time_and_no_more_than_allowed(plugin: str) -> None:
    """192 judgements of groups of 6, 32 at a time at most; with a smaller bound, that many."""
    groups = [group(str(i), *map(str, range(6))) for i in range(32)]
    found = scored({f"{plugin}:judge": 1.0}, *groups)
    assert scores(found) == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]] * 32
    assert max(one.parts["a.py:judge/most"] for rewards in found for one in rewards) == 32.0
    found = scored({f"{plugin}:judge": 1.0}, *groups[:3], concurrency=5)
    assert max(one.parts["a.py:judge/most"] for rewards in found for one in rewards) == 5.0


def test_an_async_reward_may_declare_whole_seconds(plugin: str) -> None:
    (found,) = scored({f"{plugin}:patient": 1.0}, group("p", "1", "2"))
    assert [one.score for one in found] == [1.0, 2.0]


def test_async_rewards_of_this_process_alone_are_many_at_a_time(plugin: str) -> None:
    """A notebook's: in a thread, with the same bound, limit and errors."""
    groups = [group(str(i), *map(str, range(6))) for i in range(4)]
    found = scored({f"{plugin}:judge": 1.0}, *groups, local=True, concurrency=9)
    assert scores(found) == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]] * 4
    assert max(one.parts["a.py:judge/most"] for rewards in found for one in rewards) == 9.0
    (found_bad,) = scored({f"{plugin}:mixed": 1.0}, group("p", "waits", "raises", "3"), local=True, timeout=0.5)
    assert [one.verdict.value for one in found_bad] == ["timed_out", "broken", "correct"]


def test_only_the_guilty_call_of_an_async_reward_suffers(plugin: str) -> None:
    bad = ["blocks", "dies", "waits", "raises", "fills"]
    (found,) = scored({f"{plugin}:mixed": 1.0}, group("p", *bad, *map(str, range(12))), timeout=1.0)
    assert [one.score for one in found] == [None] * 5 + [float(i) for i in range(12)]
    assert [one.verdict.value for one in found[:5]] == ["timed_out", "broken", "timed_out", "broken", "broken"]
    assert found[1].detail == "its worker process died (exit status 2)"
    assert "KeyError: 'no'" in found[3].detail
    assert "ran out of memory" in found[4].detail


def test_a_call_that_holds_the_interpreter_up_is_ended_whatever_waits_to_be_sent(
    plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One C call that lets no other thread run, and more text behind it than a pipe takes."""
    monkeypatch.setattr("rlreason.rewards.concurrent_pool._SEND_SECONDS", 1.0)
    texts = ["holds", *(f"{i}{' ' * 100_000}" for i in range(8))]
    (found,) = scored({f"{plugin}:mixed": 1.0}, group("p", *texts), timeout=1.0, concurrency=4)
    assert [one.score for one in found] == [None, *map(float, range(8))]
    assert found[0].verdict is Verdict.TIMED_OUT


def test_a_group_reward_sees_all_completions_of_a_problem(plugin: str) -> None:
    found = scored({"accuracy": 1.0, f"{plugin}:rank": 1.0}, group("a", "20", "10", "30"), group("b", "5"))
    assert scores(found) == [[1 / 3, 0.0, 2 / 3], [0.0]]
    assert found[0][0].parts == {"accuracy": 0.0, "a.py:rank": 1 / 3}
    (found_later,) = scored({"accuracy": 1.0, f"{plugin}:rank_later": 1.0}, group("a", "7", "\\boxed{8}"))
    assert [one.score for one in found_later] == [1.0 + 1.0 + 2.0, 0.0 + 2.0]  # right, and step 2
    (few,) = scored({"accuracy": 1.0, f"{plugin}:few": 1.0}, group("a", "7", "8"))
    assert [one.verdict for one in few] == [Verdict.BROKEN] * 2
    assert "gave 1 values for 2 completions" in few[0].detail
    assert few[0].verified is Verdict.CORRECT


def test_a_step_reward_sees_all_that_is_drawn_for_a_step(plugin: str) -> None:
    """Groups come one after the other, as they are drawn: nothing is scored before the last is there."""
    groups = [group("a", "1", "2", "3"), group("b"), group("c", "4")]
    ids = [one.group_id for one in groups]
    with PoolScorer(RewardMix.from_table({f"{plugin}:whole": 1.0})) as scorer:
        first = [scorer.submit(one, ids) for one in groups[:2]]
        assert scorer.submit(group("d", "9")).result(60).scores_G == (1.0,)  # alone: it is its own step
        assert not any(one.done() for one in first)
        last = scorer.submit(groups[2], ids)
        assert [one.result(60).scores_G for one in (*first, last)] == [(4.0, 4.0, 4.0), (), (4.0,)]


def test_the_main_part_may_have_limits_of_its_own(plugin: str) -> None:
    """Then it is asked first, and the others after it; ``length`` is told its verdict."""
    table: dict[str, object] = {
        "format": 0.5,
        "accuracy": {"weight": 1.0, "seconds": 30.0},
        "length": {"weight": 1.0, "max_tokens": 4, "correct": [2.0, 2.0], "wrong": [-2.0, -2.0]},
    }
    (found,) = scored(table, group("p", "7", "8", "<think>x</think><answer>7</answer>"))
    assert [one.score for one in found] == [3.0, -2.0, 3.5]
    (late,) = scored({f"{plugin}:quick": 1.0, "format": 1.0}, group("p", "3", "4"))
    assert [(one.score, one.verdict.value) for one in late] == [(None, "timed_out"), (1.0, "correct")]


def test_a_reward_s_own_limits_hold(plugin: str) -> None:
    table: dict[str, object] = {"accuracy": 1.0, f"{plugin}:quick": 0.5}
    (found,) = scored(table, group("p", *map(str, range(8))), timeout=60.0)
    assert [one.score for one in found] == [0.5, 0.5, 0.5, None, 0.5, 0.5, 0.5, 1.5]
    assert (found[3].verdict, found[3].verified) == (Verdict.TIMED_OUT, Verdict.WRONG)
    assert found[3].detail == "a.py:quick: ran past 0.4 s"


def test_a_reward_that_leaks_ends_in_no_completion_s_name(plugin: str) -> None:
    """60 MB a completion under a limit of 700: its processes end one after the other, every completion has a score."""
    found = scored({"accuracy": 1.0, f"{plugin}:leaks": 1.0}, *[group(str(i), *map(str, range(8))) for i in range(4)])
    assert scores(found) == [[1.0] * 7 + [2.0]] * 4


def test_a_reward_that_crashes_costs_the_completion(plugin: str) -> None:
    (found,) = scored({"accuracy": 1.0, f"{plugin}:crashes": {"weight": 1.0, "seconds": 30}}, group("p", *"2347"))
    assert [one.score for one in found] == [1.0, None, 1.0, 2.0]
    assert (found[1].verdict, found[1].verified) == (Verdict.BROKEN, Verdict.WRONG)
    assert found[1].detail == "a.py:crashes: its worker process died (exit status 9)"


def test_a_gate_counts_a_part_only_where_another_is_right(plugin: str) -> None:
    table = {"accuracy": 1.0, f"{plugin}:half": {"weight": 1.0, "gate": "accuracy"}}
    (found,) = scored(table, group("p", "7", "8"))
    assert [one.score for one in found] == [1.5, 0.0]
    assert [sorted(one.parts) for one in found] == [["a.py:half", "accuracy"], ["accuracy"]]
    # a gate that is closed saves the call
    (found,) = scored(
        {"accuracy": 1.0, f"{plugin}:counted": {"weight": 1.0, "gate": "accuracy"}}, group("p", *"8888887")
    )
    assert found[-1].parts["a.py:counted"] == 1.0
    # a gate that is no main part, and a group reward behind it
    table = {"accuracy": 1.0, "format": 0.0, f"{plugin}:rank": {"weight": 1.0, "gate": "format"}}
    (found,) = scored(table, group("p", "7", "8"))
    assert [one.score for one in found] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"accuracy": 1.0, "format": {"weight": 1.0, "gate": "acuracy"}}, "no other part"),
        ({"accuracy": {"weight": 1.0, "gate": "format"}, "format": 1.0}, "gives the verdict has no gate"),
        (
            {"accuracy": 1.0, "format": {"weight": 1, "gate": "tags"}, "tags": {"weight": 1, "gate": "accuracy"}},
            "has a gate itself",
        ),
        ({"accuracy": 1.0, "format": {"weight": 1.0, "schedule": [[5, 1.0], [5, 0.0]]}}, "steps must rise"),
        ({"accuracy": 1.0, "format": {"weight": 1.0, "schedule": 3}}, "must be points"),
        ({"accuracy": 1.0, "format": {"weight": 1.0, "sources": []}}, "must be a list of names"),
        ({"accuracy": 1.0, "format": {"weight": 1.0, "sources": {"a": "much"}}}, "must be a number"),
        ({"accuracy": 1.0, "format": {"weight": 1.0, "seconds": 0}}, "more than 0"),
    ],
)
def test_gates_schedules_sources_and_limits_are_checked(table: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardMix.from_table(table)


def test_a_schedule_moves_a_weight_over_the_steps(plugin: str) -> None:
    """0.5 with weight 2 and a factor from 1 at step 2 to 0 at step 6."""
    table = {"accuracy": 0.0, f"{plugin}:half": {"weight": 2.0, "schedule": [[2, 1.0], [6, 0.0]]}}
    groups = [replace(group("p", "8"), group_id=f"grpo/{step}/p") for step in (0, 2, 3, 5, 6, 90)]
    assert scores(scored(table, *groups)) == [[1.0], [1.0], [0.75], [0.25], [0.0], [0.0]]


def test_sources_have_mixes_of_their_own(plugin: str) -> None:
    table = {
        "accuracy": 1.0,
        f"{plugin}:half": {"weight": 1.0, "sources": {"gsm8k": 2.0, "logic": 4.0}},
        f"{plugin}:counted": {"weight": 1.0, "sources": ["code"]},
    }
    groups = [group("a", "7", source="gsm8k"), group("b", "7", data_set="logic"), group("c", "7", source="else")]
    found = scored(table, *groups)
    assert scores(found) == [[2.0], [3.0], [1.0]]
    assert [sorted(rewards[0].parts) for rewards in found] == [["a.py:half", "accuracy"]] * 2 + [["accuracy"]]


# servers and models


class Server(BaseHTTPRequestHandler):
    """A reward server: scores are the responses as numbers; its path says how it behaves."""

    asked: ClassVar[list[dict[str, Any]]] = []
    refused = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        cls = type(self)
        cls.asked.append(body | {"token": self.headers.get("Authorization")})
        if self.path == "/busy" and cls.refused < 2:
            cls.refused += 1
            self._say(503, b"later")
        elif self.path == "/never":
            self._say(500, b"broken for good")
        elif self.path == "/slow":
            self.server.let_go.wait(20)  # type: ignore[attr-defined]
        elif self.path == "/no":
            self._say(403, b"who are you?")
        elif self.path == "/odd":
            self._say(200, b"<html>")
        elif self.path == "/openrlhf":
            self._say(200, json.dumps({"rewards": [float(len(one)) for one in body["query"]]}).encode())
        else:
            values = [None if one["response"] == "?" else float(one["response"]) for one in body["items"]]
            self._say(200, json.dumps({"scores": values}).encode())

    def _say(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not to the terminal."""


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked.clear()
    Server.refused = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        http.let_go = threading.Event()  # type: ignore[attr-defined]
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http:http://127.0.0.1:{http.server_port}"
        http.let_go.set()  # type: ignore[attr-defined]
        http.shutdown()


def test_a_reward_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    table: dict[str, object] = {
        "accuracy": 0.0,
        f"{server}/score": {"weight": 1.0, "token": {"env": "JUDGE_KEY"}, "timeout": 20.0},
    }
    found = scored(table, group("a", "1", "2", "?", source="sums"), group("b", "3"))
    assert scores(found) == [[1.0, 2.0, 0.0], [3.0]]  # null: does not apply, and adds nothing
    assert {one["token"] for one in Server.asked} == {"Bearer s3cret"}
    (first,) = [one for one in Server.asked if len(one["items"]) == 3]
    assert first["items"][1] == {
        "id": "a", "prompt": "", "messages": [], "reference": "7", "source": "sums", "extra": {}, "response": "2",
        "tokens": 2,
    }  # fmt: skip
    assert (first["labels"], first["query"]) == (["7"] * 3, ["1", "2", "?"])
    assert scores(scored({f"{server}/openrlhf": 1.0}, group("a", "1", "22"))) == [[1.0, 2.0]]


def test_a_reward_server_that_fails(server: str) -> None:
    fast = {"weight": 1.0, "wait": 0.01}
    assert scores(scored({f"{server}/busy": dict(fast)}, group("a", "1"))) == [[1.0]]
    for path, requests, said in (
        ("never", 3, "500: broken for good, after 3 requests"),
        ("no", 1, "refuses with 403: who are you?"),
        ("odd", 1, "no JSON"),
        ("slow", 3, "no answer from the reward server: timed out, after 3 requests"),
    ):
        Server.asked.clear()
        ((result,),) = scored(
            {f"{server}/{path}": fast | {"retries": 2, "timeout": 0.3 if path == "slow" else 20.0}}, group("a", "1")
        )
        assert (result.verdict, len(Server.asked)) == (Verdict.BROKEN, requests)
        assert said in result.detail
    gone = "http:http://127.0.0.1:9/score"
    ((result,),) = scored({gone: fast | {"retries": 1}}, group("a", "1"))
    assert "no answer from the reward server" in result.detail


@pytest.fixture(scope="module")
def judge_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of one output, and what it says without us, in its folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from rlreason.policy.tokenizer import character_tokenizer

    folder = tmp_path_factory.mktemp("models") / "judge"
    tokenizer = character_tokenizer("0123456789+= ab")
    tokenizer.chat_template = "{% for one in messages %}{{ one['content'] }}={% endfor %}"
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    texts = [tokenizer(one, return_tensors="pt")["input_ids"] for one in ("3+4=7", "3+4=18", "3+4=7=")]
    with torch.inference_mode():
        said = [float(model(input_ids=ids).logits[0, 0]) for ids in texts]
    (folder / "said.json").write_text(json.dumps(said))
    return folder


def test_a_reward_model(judge_model: Path) -> None:
    """Padded batches through worker processes give what the model says of each text alone."""
    said = json.loads((judge_model / "said.json").read_text())
    text = Problem(id="t", prompt="3+4=", verifier="math", reference="7")
    chat = replace(text, id="c", messages=(Message(role="user", content="3+4"),))
    rows = [(text, Completion.from_text("7")), (text, Completion.from_text("18")), (chat, Completion.from_text("7"))]
    found = score_rows({f"rm:{judge_model}": {"weight": 1.0, "batch_size": 2, "device": "cpu"}}, rows, Limits())
    assert [one.detail for one in found] == [""] * 3
    assert [one.score for one in found] == pytest.approx(said, abs=1e-5)
    assert abs(said[0] - said[1]) > 1e-3  # texts that differ are told apart
    with pytest.raises(ValueError, match=r"no config\.json there"):
        RewardMix.from_table({"rm:nowhere": 1.0})
