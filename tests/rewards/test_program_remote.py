"""The SandboxFusion adapter against a local server that speaks its documented schema and really runs the programs."""

import json
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlreason.rewards import limit
from rlreason.rewards.jail.data import to_tree
from rlreason.rewards.jail.jail import Limits
from rlreason.rewards.programs.calls import remote_tests
from rlreason.rewards.programs.remote import ENDPOINT_VARIABLE, RemoteError, SandboxFusion, code_remote
from rlreason.rewards.registry import resolve
from rlreason.types import Completion, Problem, Verdict

Answer = tuple[int, object]
LIMITS = replace(Limits(), wall_seconds=20.0)
SHORT = replace(Limits(), wall_seconds=1.0, output_bytes=20_000)
ADD = "def add(a, b):\n    return a + b\n"
SUM = "a, b = map(int, input().split())\nprint(a + b)\n"
STDIN = {"type": "stdin", "cases": [{"input": "1 2\n", "output": "3\n"}, {"input": "5 -5\n", "output": "0\n"}]}
FUNCTION = {
    "type": "function",
    "entry_point": "add",
    "cases": [{"args": [1, 2], "expected": 3}, {"args": [2, 5], "kwargs": {}, "expected": 7}],
}
ASSERTS = {"type": "asserts", "setup": "", "asserts": ["assert add(1, 2) == 3", "assert sorted([add(2, 5)]) == [7]"]}
CHECK = {
    "type": "function",
    "entry_point": "add",
    "code": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert abs(candidate(1, 0.5) - 1.5) < 1e-6\n",
}


def run_code(request: dict[str, object]) -> Answer:
    """What the service does with ``POST /run_code``, field by field as its API page says."""
    assert request["language"] == "python"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", str(request["code"])],
            input=str(request["stdin"] or "").encode(),
            capture_output=True,
            timeout=float(str(request["run_timeout"])),
            check=False,
        )
    except subprocess.TimeoutExpired:
        run = {"status": "TimeLimitExceeded", "execution_time": None, "return_code": None, "stdout": "", "stderr": ""}
        return 200, {"status": "Failed", "message": "", "run_result": run}
    run = {
        "status": "Finished",
        "execution_time": 0.1,
        "return_code": done.returncode,
        "stdout": done.stdout.decode(errors="replace"),
        "stderr": done.stderr.decode(errors="replace"),
    }
    status = "Success" if done.returncode == 0 else "Failed"
    return 200, {"status": status, "message": "", "compile_result": None, "run_result": run, "files": {}}


class Service:
    """A server on 127.0.0.1; ``answer`` may be replaced; ``requests`` holds what came."""

    def __init__(self) -> None:
        self.requests: list[dict[str, object]] = []
        self.answer: Callable[[dict[str, object]], Answer] = run_code
        self.busy = self.most_busy = 0
        lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert (self.path, self.headers["Content-Type"]) == ("/run_code", "application/json")
                with lock:
                    service.requests.append(body)
                    service.busy += 1
                    service.most_busy = max(service.most_busy, service.busy)
                status, answer = service.answer(body)
                with lock:
                    service.busy -= 1
                text = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                if status == 307:
                    self.send_header("Location", f"http://127.0.0.1:{service.port}/run_code")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def client(self, **options: int) -> SandboxFusion:
        return SandboxFusion(self.address, **options)


@pytest.fixture
def service() -> Iterator[Service]:
    running = Service()
    yield running
    running.server.shutdown()
    running.server.server_close()


CASES = {
    "stdin right": (SUM, STDIN, Verdict.CORRECT),
    "stdin wrong": (SUM.replace("a + b", "a - b"), STDIN, Verdict.WRONG),
    "stdin right, then an exception": (SUM + "1 / 0\n", STDIN, Verdict.WRONG),
    "stdin exits early": ("raise SystemExit(0)", STDIN, Verdict.WRONG),
    "stdin syntax error": ("print(", STDIN, Verdict.WRONG),
    "function right": (ADD, FUNCTION, Verdict.CORRECT),
    "function wrong": (ADD.replace("+", "-"), FUNCTION, Verdict.WRONG),
    "function prints as well": (ADD.replace("    return", "    print([0, 3])\n    return"), FUNCTION, Verdict.CORRECT),
    "function missing": ("def other(a, b): return 3", FUNCTION, Verdict.WRONG),
    "function of lying type": (
        "class E(int):\n    def __eq__(self, o): return True\ndef add(a, b): return E()",
        FUNCTION,
        Verdict.WRONG,
    ),
    "function exits": ("import os\ndef add(a, b): os._exit(0)", FUNCTION, Verdict.WRONG),
    "function raises": ("def add(a, b): raise KeyboardInterrupt", FUNCTION, Verdict.WRONG),
    "function holds itself": ("def add(a, b):\n    x = []\n    x.append(x)\n    return x", FUNCTION, Verdict.WRONG),
    "function by call count": (
        "n = 0\ndef add(a, b):\n    global n\n    n += 1\n    return [0, 3, 7][n]",
        {**FUNCTION, "cases": [{"args": [k, k], "expected": 2 * k} for k in range(40)]},
        Verdict.WRONG,
    ),
    "a set whose keys collide": (
        "def add(a, b): return {k * (2**61 - 1) for k in range(5_000)}",
        {"type": "asserts", "setup": "", "asserts": ["assert len(add(1, 2)) == 5_000"]},
        Verdict.WRONG,
    ),
    "a small set": (
        "def add(a, b): return {a, b}",
        {"type": "asserts", "setup": "", "asserts": ["assert add(1, 2) == {1, 2}", "assert add((1,), 2) == {(1,), 2}"]},
        Verdict.CORRECT,
    ),
    "nan": ("def add(a, b): return float('nan')", FUNCTION, Verdict.WRONG),
    "main guard": (ADD + "if __name__ == '__main__':\n    raise SystemExit(1)", FUNCTION, Verdict.CORRECT),
    "asserts right": (ADD, ASSERTS, Verdict.CORRECT),
    "asserts wrong": ("def add(a, b): return 3", ASSERTS, Verdict.WRONG),
    "check right": (ADD, CHECK, Verdict.CORRECT),
    "check wrong": ("def add(a, b): return 3", CHECK, Verdict.WRONG),
    "check prints success": ("print('passed')\nimport os\nos._exit(0)", CHECK, Verdict.WRONG),
}


@pytest.mark.parametrize(("source", "tests", "verdict"), CASES.values(), ids=CASES.keys())
def test_verdicts(service: Service, source: str, tests: dict[str, object], verdict: Verdict) -> None:
    result = service.client().check(source, tests, limits=LIMITS)
    assert result.verdict is verdict, result.detail
    assert result.score == (1.0 if verdict is Verdict.CORRECT else 0.0)
    assert (result.detail == "") == (verdict is Verdict.CORRECT)


def test_the_request_is_as_documented(service: Service) -> None:
    service.client().check(SUM, STDIN, limits=LIMITS)
    assert [request["stdin"] for request in service.requests] == ["1 2\n", "5 -5\n"]
    known = {"compile_timeout", "run_timeout", "memory_limit_MB", "code", "stdin", "language", "files", "fetch_files"}
    assert set(service.requests[0]) <= known
    assert service.requests[0]["run_timeout"] == 20.0
    assert service.requests[0]["memory_limit_MB"] == LIMITS.memory_mb


@pytest.mark.parametrize("tests", [STDIN, FUNCTION, ASSERTS, CHECK], ids=["stdin", "function", "asserts", "check"])
def test_expected_values_are_not_sent(service: Service, tests: dict[str, object]) -> None:
    marked = json.loads(
        json.dumps(tests)
        .replace('"3\\n"', '"778899\\n"')
        .replace('"expected": 3', '"expected": 778899')
        .replace("== 3", "== 778899")
    )
    assert "778899" in json.dumps(marked)
    assert service.client().check(ADD, marked, limits=LIMITS).verdict is Verdict.WRONG
    assert service.requests
    assert "778899" not in json.dumps(service.requests)


def test_partial_and_early_stop(service: Service) -> None:
    tests = {"type": "stdin", "cases": [{"input": f"{a} {a}\n", "output": f"{a * a}\n"} for a in (1, 2, 3, 0)]}
    result = service.client().check(SUM, tests, limits=LIMITS, partial=True)
    assert (result.verdict, result.score) == (Verdict.WRONG, 0.5)
    assert "case 0" in result.detail
    assert len(service.requests) == 4
    assert service.client().check(SUM, tests, limits=LIMITS).score == 0.0
    assert len(service.requests) == 5


def test_time_and_output_limits(service: Service) -> None:
    assert service.client().check("while True: pass", STDIN, limits=SHORT).verdict is Verdict.TIMED_OUT
    flood = service.client().check("print('x' * 1_000_000)", STDIN, limits=SHORT)
    assert (flood.verdict, flood.score) == (Verdict.WRONG, 0.0)
    assert "more than allowed" in flood.detail


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ({"type": "unittest", "code": "import unittest"}, "local sandbox"),
        ({**STDIN, "checker": "def check(a, b, c): return True"}, "local sandbox"),
        ({"type": "asserts", "setup": "x = 1", "asserts": ["assert add(x, 1) == 2"]}, "local sandbox"),
        ({"type": "asserts", "setup": "", "asserts": ["assert add(1, 2) ** 9 == 3"]}, "local sandbox"),
        ({"type": "asserts", "setup": "", "asserts": ["assert add(open('x'), 2) == 3"]}, "plain data"),
        ({"type": "asserts", "setup": "", "asserts": ["assert add(1, 2).__class__"]}, "local sandbox"),
        ({"type": "asserts", "setup": "", "asserts": ["x = add(1, 2)"]}, "plain assert"),
        ({**FUNCTION, "cases": [{"args": [object()], "expected": 3}]}, "plain data"),
        ({"type": "asserts", "setup": "", "asserts": ["assert True"]}, "no call"),
        ({"type": "asserts", "setup": "", "asserts": ["assert ("]}, "never closed"),
        ({"type": "asserts", "setup": "", "asserts": []}, "at least one"),
        ({"type": "stdin", "cases": []}, "at least one"),
        ({"type": "stdin", "cases": [{"input": "1"}]}, "'output'"),
        ({"type": "function", "entry_point": "f", "code": "def test(f): pass"}, "no def check"),
        ({}, "unknown type"),
    ],
)  # fmt: skip
def test_what_can_not_be_read_off_is_broken(service: Service, tests: dict[str, object], reason: str) -> None:
    result = service.client().check(ADD, tests, limits=LIMITS)
    assert (result.verdict, result.score) == (Verdict.BROKEN, None)
    assert reason in result.detail
    assert not service.requests


FAULTS = {
    "sandbox error": (200, {"status": "SandboxError", "message": "no slot", "run_result": None}),
    "not JSON": (200, "<html>"),
    "nested without end": (200, "[" * 100_000),
    "a list": (200, []),
    "no run_result": (200, {"status": "Success", "message": ""}),
    "odd status": (200, {"status": "Success", "run_result": {"status": "Great", "return_code": 0, "stdout": "3"}}),
    "odd stdout": (200, {"status": "Success", "run_result": {"status": "Finished", "return_code": 0, "stdout": 3}}),
    "unknown path": (404, {"detail": "Not Found"}),
    "refused field": (422, {"detail": []}),
    "redirect": (307, {}),
}


@pytest.mark.parametrize("answer", FAULTS.values(), ids=FAULTS.keys())
def test_faults_of_the_service_are_broken(service: Service, answer: Answer) -> None:
    service.answer = lambda _: answer
    result = service.client().check(SUM, STDIN, limits=LIMITS)
    assert (result.verdict, result.score) == (Verdict.BROKEN, None)
    assert result.detail
    assert len(service.requests) == 1  # asking again would not help


def test_a_busy_service_is_asked_again(service: Service) -> None:
    left = [429, 503]

    def answer(request: dict[str, object]) -> Answer:
        return (left.pop(), {}) if left else run_code(request)

    service.answer = answer
    assert service.client().check(SUM, STDIN, limits=LIMITS).verdict is Verdict.CORRECT
    service.answer = lambda _: (503, {})
    result = service.client(attempts=2).check(SUM, STDIN, limits=LIMITS)
    assert (result.verdict, result.score) == (Verdict.BROKEN, None)
    assert "503" in result.detail


def test_nobody_there(service: Service) -> None:
    service.server.shutdown()
    service.server.server_close()
    with pytest.raises(RemoteError, match="refused"):
        service.client(attempts=1).run("print(1)", "", LIMITS)


def test_no_more_requests_at_a_time_than_allowed(service: Service) -> None:
    def answer(request: dict[str, object]) -> Answer:
        time.sleep(0.05)
        run = {"status": "Finished", "return_code": 0, "stdout": "3\n", "stderr": ""}
        return 200, {"status": "Success", "message": "", "run_result": run}

    service.answer = answer
    client = service.client(in_flight=2)
    tests = {"type": "stdin", "cases": [{"input": "", "output": "3"}]}
    verdicts: list[Verdict] = []
    threads = [
        threading.Thread(target=lambda: verdicts.append(client.check("", tests, limits=LIMITS).verdict))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [Verdict.CORRECT] * 8
    assert service.most_busy == 2


def test_as_a_verifier(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(id="p", prompt="", verifier="code_remote", reference=STDIN)

    def completion(text: str) -> Completion:
        return Completion(prompt_ids=(), token_ids=(), sampler_logprobs=None, text=text, finish_reason="stop")

    right = completion(f"<think>hm</think>\n```python\n{SUM}```")
    monkeypatch.delenv(ENDPOINT_VARIABLE, raising=False)
    with pytest.raises(ValueError, match=ENDPOINT_VARIABLE):
        code_remote(problem, right)
    monkeypatch.setenv(ENDPOINT_VARIABLE, service.address)
    result = code_remote(problem, right)
    assert (result.verdict, result.extracted) == (Verdict.CORRECT, SUM)
    assert code_remote(problem, completion("no program"), endpoint=service.address).verdict is Verdict.UNPARSED
    assert code_remote(problem, completion(SUM), whole_text=True).verdict is Verdict.CORRECT
    assert resolve("rlreason.rewards.programs.remote:code_remote").verifier


@pytest.mark.parametrize("address", ["", "127.0.0.1:8080", "file:///etc/passwd", "ftp://host/"])
def test_odd_addresses_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="http"):
        SandboxFusion(address)


@pytest.mark.parametrize(
    "result",
    [
        "range(10**9)",  # a46 of the hostile programs, and its kin
        '["F", "1e6000000"]',
        '["F", 1, ["i", "0x' + "f" * 100_000 + '"]]',
        '["D", "1E+999999999"]',
        '["l", ["r", 0, 60000, 1], ["r", 0, 60000, 1]]',
        '["l"' + ', ["F", 1, 1000000007]' * 2000 + "]",
        '["d"' + "".join(f", {(2**61 - 1) * i + 1}, 0" for i in range(1, 5000)) + "]",
    ],
)
def test_a_result_that_would_be_large_here_is_none(result: str) -> None:
    """A short text may stand for a value of any size; the tests look at values in the trusted process."""
    asserts = [f"assert {one}" for one in ("sorted(f(1)) == [1]", "sum(f(1)) == 1", "abs(f(1)) == 1", "int(f(1)) == 1")]
    tests = remote_tests({"type": "asserts", "setup": "", "asserts": asserts})
    (run,) = tests.runs("def f(x): return 0")
    tree = result if result.startswith("[") else '["r", 0, 1000000000, 1]'
    tracemalloc.start()
    assert run.judge("".join(f"[{number}, {tree}]\n" for number in range(4))) == [False] * 4
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 << 20


@pytest.mark.parametrize("value", [range(9), Fraction(1, 3), Decimal("1.5"), {(1, 2): [3]}, list(range(10**4)), 7**400])
def test_a_result_of_common_size_is_looked_at(value: object) -> None:
    tests = remote_tests({"type": "asserts", "setup": "", "asserts": ["assert f(1)"]})
    (run,) = tests.runs("def f(x): return 0")
    assert run.judge(f"[0, {json.dumps(to_tree(value))}]\n") == [True]


def test_a_hang_has_a_score_within_any_limit_of_a_pool(service: Service) -> None:
    """The service stops each case by itself; all of them together keep the reward pool's limit."""
    slow = "import time\ntime.sleep(0.4)\nprint(input())"
    tests = {"type": "stdin", "cases": [{"input": str(n), "output": str(n)} for n in range(40)]}
    with limit.item(1.0, lambda extra: None):
        result = service.client().check(slow, tests, limits=LIMITS)
        hang = service.client().check("while True: pass", tests, limits=LIMITS)
    assert (result.verdict, result.score) == (Verdict.TIMED_OUT, 0.0)
    assert (hang.verdict, hang.score) == (Verdict.TIMED_OUT, 0.0)


@pytest.mark.parametrize("entry_point", ["add", "Solution().add", "Solution.add"])
def test_a_prelude_and_methods(service: Service, entry_point: str) -> None:
    program = "class Solution:\n    def add(self, a: List[int]) -> int:\n        return sum(a)\n"
    cases = [{"args": [[1, 2]], "expected": 3}]
    tests = {"type": "function", "entry_point": entry_point, "cases": cases, "prelude": "from typing import List"}
    assert service.client().check(program, tests, limits=LIMITS).verdict is Verdict.CORRECT
    assert service.client().check(program, {**tests, "prelude": ""}, limits=LIMITS).verdict is Verdict.WRONG
    stdin = {"type": "stdin", "cases": [{"input": "4", "output": "2.0"}], "prelude": "from math import sqrt"}
    assert service.client().check("print(sqrt(int(input())))", stdin, limits=LIMITS).verdict is Verdict.CORRECT
    in_two_lines = {"type": "stdin", "cases": [{"input": "", "output": "1\n2\n"}], "lines": False}
    assert service.client().check("print(1, 2)", in_two_lines, limits=LIMITS).verdict is Verdict.CORRECT
    by_line = {**in_two_lines, "lines": True}
    assert service.client().check("print(1, 2)", by_line, limits=LIMITS).verdict is Verdict.WRONG


def test_what_a_call_does_to_an_argument_needs_the_local_sandbox(service: Service) -> None:
    cases = [{"args": [[2, 1]], "argument": 0, "expected": [1, 2]}]
    tests = {"type": "function", "entry_point": "f", "cases": cases}
    result = service.client().check("def f(a): a.sort()", tests, limits=LIMITS)
    assert (result.verdict, result.score) == (Verdict.BROKEN, None)
    assert "argument after the call" in result.detail
