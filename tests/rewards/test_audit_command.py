"""`rlreason audit` as a user gives it, and a recipe that requires it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from rlreason.cli import app
from rlreason.config import load
from rlreason.errors import UsageError
from rlreason.report.page import provenance
from rlreason.run.manifest import AuditEntry, AuditRate

JUDGE = """
def bare(problem, completion, *, strip=True):
    text = completion.response.strip() if strip else completion.response
    return float(text == problem.reference)

def inside(problem, completion):
    return float(problem.reference in completion.response)
"""
RECIPE = """
name = "gated"
[data]
train = "countdown"
[reward]
"judge.py:bare" = {{ weight = 0.1, strip = false }}
{more}
[[stage]]
kind = "grpo"
name = "grpo"
steps = 1
problems_per_step = 1
max_tokens = 8
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge.py").write_text(JUDGE)
    (tmp_path / "recipe.toml").write_text(RECIPE.format(more="require_audit = true"))
    return tmp_path


def rlreason(line: str) -> Result:
    return CliRunner().invoke(app, shlex.split(line))


def usage_error(line: str) -> str:
    """What the command prints after "error:", with exit code 2 (``terminal.ends``)."""
    done = rlreason(line)
    assert isinstance(done.exception, UsageError), done.output
    return str(done.exception)


def test_a_run_needs_the_audit_that_it_asks_for(here: Path) -> None:
    refused = usage_error("plan recipe.toml")
    command = re.search(r"rlreason (audit .*)", refused)
    assert command is not None
    assert "judge.py:bare has no audit that it passed" in refused
    done = rlreason(command[1])  # the command that it names is the one that helps
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-3] == "passed"
    assert rlreason("plan recipe.toml").exit_code == 0
    page = (here / "judge.bare-strip=False.audit.html").read_text(encoding="utf-8")
    assert "judge.py:bare" in page
    assert "<script" not in page
    stored = json.loads((here / "judge.bare-strip=False.audit.json").read_text(encoding="utf-8"))
    assert (stored["verdict"], stored["kind"]) == ("pass", "verifier")
    recipe = here / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("strip = false", "strip = true"))
    assert "its options were {'strip': False}, and are {'strip': True}" in usage_error("plan recipe.toml")
    recipe.write_text(recipe.read_text().replace("strip = true", "strip = false").replace("0.1", "0.7"))
    assert rlreason("plan recipe.toml").exit_code == 0  # a weight is not what was audited
    (here / "judge.py").write_text(JUDGE + "# changed\n")
    assert "changed since: code judge.py" in usage_error("plan recipe.toml")


def test_a_flawed_one_exits_1_and_opens_no_gate(here: Path) -> None:
    done = rlreason("audit judge.py:inside --out inside.audit.json")
    assert done.exit_code == 1
    assert "FAIL    redteam.substring" in done.output
    assert (here / "inside.audit.html").is_file()
    recipe = (here / "recipe.toml").read_text()
    (here / "recipe.toml").write_text(re.sub('"judge.py:bare".*', '"judge.py:inside" = 1.0\naudits = "."', recipe))
    assert "inside.audit.json: failed (" in usage_error("plan recipe.toml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("audit judge.py:bear", "has no 'bear'"),
        ("audit nothing.py:f", "does not exist"),
        ("audit judge.py:bare --option stripp=true", "no option 'stripp': did you mean 'strip'"),
        ("audit judge.py:bare --option strip", "write KEY=VALUE"),
        ("audit judge.py:bare --kind judge", "verifier or shape"),
        ("audit judge.py:bare --allow nets", "one of network, files, processes"),
        ("audit judge.py:bare --range 1,0", "the first must be below"),
        ("audit judge.py:bare --template here", "it needs {answer}"),
        ("audit judge.py:bare --data gone.jsonl", "gone.jsonl: No such file"),
        ("audit judge.py:bare --out audit.txt", "name a .json file"),
    ],
)
def test_mistakes(here: Path, line: str, message: str) -> None:
    assert message in usage_error(line)


@pytest.mark.parametrize(("value", "words"), [('"yes"', "true or false"), ("1", "true or false")])
def test_the_key_has_one_type(here: Path, value: str, words: str) -> None:
    (here / "recipe.toml").write_text(RECIPE.format(more=f"require_audit = {value}"))
    with pytest.raises(UsageError, match=f"reward.require_audit must be {words}"):
        load(here / "recipe.toml")


def test_the_key_is_written_where_it_was_read(here: Path) -> None:
    recipe = load(here / "recipe.toml")
    assert list(recipe.reward) == ["judge.py:bare"]
    assert recipe.model_dump(mode="json")["reward"]["require_audit"] is True
    assert "require_audit" not in load(here / "recipe.toml", ("reward.require_audit=false",)).model_dump()["reward"]


def test_the_report_shows_the_rates() -> None:
    rate = AuditRate(value=0.0, low=0.0, high=0.1, count=35)
    entry = AuditEntry(reward="judge.py:bare", path="/a.json", created="2026-11-30", sources={}, false_positive=rate)
    (shown,) = provenance({"audits": [entry.model_dump()]})["audits"]
    assert shown["rates"] == [{"value": 0.0, "low": 0.0, "high": 0.1, "count": 35.0}, None]
