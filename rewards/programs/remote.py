"""Programs run elsewhere: on a SandboxFusion-compatible HTTP service.

The service only runs the candidate and returns what it printed. Expected values stay here and are compared here, so
a program can't read them and has no verdict to forge. How well the program is isolated is up to the service.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

from rlreason.rewards.jail.jail import Limits
from rlreason.rewards.limit import item_seconds, keeps_own_limit
from rlreason.rewards.programs.calls import RemoteTests, remote_tests
from rlreason.rewards.programs.extract import extract_program
from rlreason.rewards.programs.tests import BadTests
from rlreason.rewards.registry import verifier
from rlreason.types import Completion, Problem, RewardResult, Verdict

#: Where ``code_remote`` finds the service unless its option says so; the name that SandboxFusion's own client reads.
ENDPOINT_VARIABLE = "SANDBOX_FUSION_ENDPOINT"
#: Seconds that the service may need beyond the run itself (queue, transfer).
_SLACK_SECONDS = 60.0
_RETRIED = frozenset({429, 500, 502, 503, 504})


class RemoteError(RuntimeError):
    """The service did not do its part: says nothing of the program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteAnswer:
    """What one run printed. Example: ``RemoteAnswer(status="finished", return_code=0, stdout="5\\n", seconds=0.1)``.

    ``seconds``: what the service says that it ran; where it says nothing, until its answer came.
    """

    status: Literal["finished", "timed_out", "too_much_output"]
    return_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send programs to a host that nobody named."""

    def redirect_request(self, *_: object) -> None:
        return None


class SandboxFusion:
    """Client of ``POST {endpoint}/run_code``. Thread-safe; at most ``in_flight`` requests at a time.

    ``attempts``: tries per request; a service that is busy (429) or down is asked again after 0.5, 1, 2 … s.
    """

    def __init__(self, endpoint: str, *, in_flight: int = 16, attempts: int = 4) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"endpoint must be an http(s) address such as http://127.0.0.1:8080, not {endpoint!r}")
        if in_flight < 1 or attempts < 1:
            raise ValueError(f"need in_flight >= 1 and attempts >= 1, not {in_flight} and {attempts}")
        self._url = endpoint.rstrip("/") + "/run_code"
        self._attempts = attempts
        self._slots = threading.BoundedSemaphore(in_flight)
        self._opener = urllib.request.build_opener(_NoRedirect)

    def run(self, code: str, stdin: str, limits: Limits) -> RemoteAnswer:
        """Run one Python program. Raises RemoteError where the service fails or answers something else."""
        request = {
            "code": code,
            "stdin": stdin,
            "language": "python",
            "run_timeout": limits.wall_seconds,
            "compile_timeout": limits.wall_seconds,
            "memory_limit_MB": limits.memory_mb,
            "files": {},
            "fetch_files": [],
        }
        # Surrogates are legal in a Python str and in JSON escapes, not in UTF-8.
        body = json.dumps(request, ensure_ascii=True).encode()
        started = time.perf_counter()
        with self._slots:
            answer = self._post(body, limits)
        if answer is None:
            return RemoteAnswer(status="too_much_output", seconds=time.perf_counter() - started)
        return _read_answer(answer, limits, time.perf_counter() - started)

    def _post(self, body: bytes, limits: Limits) -> bytes | None:
        """The answer's bytes, or None where there are more than a program within its limits can cause."""
        allowed = 12 * limits.output_bytes + 65_536  # two streams, each byte at worst a \\u00xx escape
        failure = ""
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(0.5 * 2 ** (attempt - 1))
            request = urllib.request.Request(self._url, data=body, headers={"Content-Type": "application/json"})
            try:
                with self._opener.open(request, timeout=limits.wall_seconds + _SLACK_SECONDS) as response:
                    answer: bytes = response.read(allowed + 1)
                return answer if len(answer) <= allowed else None
            except urllib.error.HTTPError as error:
                failure = f"HTTP {error.code}"
                error.close()
                if error.code not in _RETRIED:
                    break
            except OSError as error:  # refused, reset, timed out, name not found
                failure = str(error)
        raise RemoteError(f"{self._url}: {failure}")

    def check(
        self, source: str, tests: Mapping[str, object], *, limits: Limits | None = None, partial: bool = False
    ) -> RewardResult:
        """Like ``check_program``, for tests whose calls can be read off: stdin, function cases, plain asserts.

        A test that can't is BROKEN, with the reason in ``detail``; so is a service that fails.
        """
        started = time.perf_counter()
        limits = limits or Limits()
        total = min(limits.total_seconds, item_seconds() or math.inf)
        keeps_own_limit(self._attempts * (total + _SLACK_SECONDS))
        limits = replace(limits, total_seconds=total)
        try:
            readable = remote_tests(tests)
        except BadTests as error:
            return _result(Verdict.BROKEN, None, str(error), started)
        try:
            return self._check(source, readable, limits, partial, started)
        except RemoteError as error:
            return _result(Verdict.BROKEN, None, str(error), started)

    def _check(self, source: str, tests: RemoteTests, limits: Limits, partial: bool, started: float) -> RewardResult:
        passed, first_failure, timed_out = 0, "", False
        left = limits.total_seconds
        for run in tests.runs(source):
            if left <= 0:
                timed_out = timed_out or not first_failure
                first_failure = first_failure or f"case {run.first}: all cases together ran past their limit"
                break
            remote = self.run(run.code, run.stdin, replace(limits, wall_seconds=min(limits.wall_seconds, left)))
            left -= remote.seconds
            outcome = run.judge(remote.stdout) if remote.status == "finished" else [False] * run.cases
            if remote.status == "finished" and tests.needs_success and remote.return_code != 0:
                outcome = [False] * run.cases
            passed += sum(outcome)
            if not all(outcome) and not first_failure:
                timed_out = remote.status == "timed_out"
                first_failure = f"case {run.first + outcome.index(False)}: {_reason(remote)}"
            if first_failure and not partial:
                break
        if not first_failure:
            return _result(Verdict.CORRECT, 1.0, "", started)
        verdict = Verdict.TIMED_OUT if timed_out else Verdict.WRONG
        return _result(verdict, passed / tests.cases if partial else 0.0, first_failure, started)


def _reason(run: RemoteAnswer) -> str:
    if run.status == "timed_out":
        return "ran past its time"
    if run.status == "too_much_output":
        return "printed more than allowed"
    if run.return_code != 0:
        return f"exit status {run.return_code}: {run.stderr[-200:].strip()}"
    return "another result"


def _result(verdict: Verdict, score: float | None, detail: str, started: float) -> RewardResult:
    return RewardResult(score=score, verdict=verdict, detail=detail, seconds=time.perf_counter() - started)


def _read_answer(body: bytes, limits: Limits, seconds: float) -> RemoteAnswer:
    """The fields of a RunCodeResponse that matter; RemoteError names what is missing or odd."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RemoteError(f"the service's answer is not JSON: {error}") from None
    if not isinstance(answer, dict):
        raise RemoteError(f"the service's answer is no JSON object: {str(answer)[:200]}")
    run = answer.get("run_result")
    if answer.get("status") not in ("Success", "Failed") or not isinstance(run, dict):
        raise RemoteError(f"the service could not run the program: {str(answer)[:300]}")
    fields = {key: run.get(key) for key in ("status", "return_code", "stdout", "stderr", "execution_time")}
    if fields["status"] == "TimeLimitExceeded":
        return RemoteAnswer(status="timed_out", seconds=limits.wall_seconds)
    ran = fields["execution_time"]
    seconds = float(ran) if isinstance(ran, (int, float)) and ran >= 0 else seconds
    code, stdout, stderr = fields["return_code"], fields["stdout"] or "", fields["stderr"] or ""
    if fields["status"] != "Finished" or type(code) is not int or type(stdout) is not str or type(stderr) is not str:
        raise RemoteError(f"the service's run_result is not as documented: {str(run)[:300]}")
    if len(stdout) > limits.output_bytes:
        return RemoteAnswer(status="too_much_output", seconds=seconds)
    return RemoteAnswer(status="finished", return_code=code, stdout=stdout, stderr=stderr, seconds=seconds)


@verifier("code_remote")
def code_remote(
    problem: Problem,
    completion: Completion,
    *,
    endpoint: str | None = None,
    partial: bool = False,
    whole_text: bool = False,
    timeout: float = 10.0,
) -> RewardResult:
    """The program in a response, checked on a SandboxFusion-compatible service.

    ``endpoint``: its address (else from the environment, SANDBOX_FUSION_ENDPOINT); ``timeout``: wall seconds per run;
    ``partial``: the share of tests passed as score; ``whole_text``: a response without a fenced block is a program.
    """
    address = endpoint if endpoint is not None else os.environ.get(ENDPOINT_VARIABLE)
    if address is None:
        raise ValueError(f"code_remote has no service: set its option endpoint or {ENDPOINT_VARIABLE}")
    if not isinstance(problem.reference, Mapping):
        raise ValueError(f"the reference of a code problem is its tests, a mapping, not {problem.reference!r:.100}")
    program = extract_program(completion.response, whole_text=whole_text)
    if program is None:
        return RewardResult(score=0.0, verdict=Verdict.UNPARSED, detail="no program in the response")
    result = _client(address).check(program, problem.reference, limits=Limits(wall_seconds=timeout), partial=partial)
    return replace(result, extracted=program)


_CLIENTS: dict[str, SandboxFusion] = {}


def _client(address: str) -> SandboxFusion:
    if address not in _CLIENTS:
        _CLIENTS[address] = SandboxFusion(address)
    return _CLIENTS[address]
