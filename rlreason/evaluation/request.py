"""What `rlreason eval` was asked, and one suite of it to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlreason.config import EvalStage, Recipe
from rlreason.eval.suites import Suite
from rlreason.run.directory import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """What to measure and how. None: as the run has it, where ``model`` is one; otherwise the suite's own.

    Example: ``EvalRequest(model="runs/q:grpo")`` is what that run's eval stage measured;
    ``EvalRequest(model="Qwen/Qwen3-0.6B", suites=("gsm8k",), samples=4)`` draws at temperature 1 and gives pass@k.
    """

    #: A Hugging Face folder, a hub id, RUN_DIR or RUN_DIR:STAGE; with ``url`` the name that the server gives its model.
    model: str
    #: Names of suites or .toml files of one's own; empty: "heldout".
    suites: tuple[str, ...] = ()
    #: Problems of the suite "heldout", or of the one suite that is named: a file, hub id or task.
    data: str | None = None
    #: At most so many; None: all that a suite has, 500 of "heldout" and of a task.
    problems: int | None = None
    samples: int | None = None
    max_tokens: int | None = None
    #: None: 0 for one sample, which is greedy; 1 for more.
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    #: A way to draw by its name: see ``eval.suites.PROTOCOLS``. What is given beside it comes first.
    protocol: str | None = None
    #: System prompt; "": none.
    system: str | None = None
    #: What each question is put into, with {prompt}; "": the question alone.
    prompt_template: str | None = None
    answer_style: str | None = None
    #: Arguments of the chat template, such as ``{"enable_thinking": False}``; {}: none.
    chat_template_kwargs: Mapping[str, Any] | None = None
    #: Solved problems that are shown before each question, as turns of the chat.
    shots: int = 0
    #: A file or hub id that has them, with the suite's columns; None: the suite's own.
    shots_from: str | None = None
    prompt_column: str | None = None
    answer_column: str | None = None
    #: "": the whole cell is the answer.
    answer_after: str | None = None
    verifier: str | None = None
    #: First and last day of a suite with dates, as 2024-08-01.
    since: str | None = None
    until: str | None = None
    engine: str | None = None
    #: An OpenAI-compatible server that has the model.
    url: str | None = None
    #: Tokenizer of the server's model; None: the server's chat template makes the prompts.
    tokenizer: str | None = None
    api_key_env: str | None = None
    #: Processes that check answers.
    workers: int | None = None
    #: Folder for results and completions; None: nothing is kept.
    out: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One suite to measure: ``stage``, which measures one model, is an eval stage of ``recipe``."""

    suite: Suite
    #: What the model is called in results.
    model: str
    recipe: Recipe
    stage: EvalStage
    #: Folder that the recipe's files are looked for in.
    base: Path
    #: The run that has the model's checkpoint; None: the recipe names the model itself.
    run: RunDirectory | None
    seed: int
    request: EvalRequest
