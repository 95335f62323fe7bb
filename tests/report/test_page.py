"""The page: what it says, that it is one file, and that no text of the run can be more than text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlreason import report
from rlreason.errors import UsageError
from rlreason.report import page, rollouts

LOADING = {"src", "href", "srcset", "action", "data", "poster", "formaction", "xlink:href", "background"}


class Document(HTMLParser):
    """Elements, attributes, text and scripts of a page, as a browser would split them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._inside == "style":
            self.styles.append(data)
        else:
            self.text += data

    @property
    def island(self) -> Any:
        return json.loads(next(text for attrs, text in self.scripts if attrs.get("id") == "run-data"))

    @property
    def flat(self) -> str:
        """The text with every run of white space as one blank, narrow no-break spaces included."""
        return " ".join(self.text.split())


def build(run_dir: Path) -> Document:
    path = report.build(run_dir)
    assert path == run_dir / "report.html"
    return Document(path.read_text(encoding="utf-8"))


def edit_manifest(run_dir: Path, change: Any) -> None:
    path = run_dir / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_the_result_the_table_and_the_facts_are_there(run_dir: Path) -> None:
    text = build(run_dir).flat
    assert (
        "GRPO lifted held-out accuracy from 44 % to 81 %; the student with 48 % of the parameters keeps 95 % of it: "
        "77 %, against 52 % for a model of that size without the teacher." in text
    )
    for expected in (
        "quickstart done",
        "39.9 % to 48.6 %",
        "+37.2 [+31.5, +42.5] from cold_start",
        "−4.2 [−9.2, +0.8] from grpo",
        "1,312,640",
        "terms=5",
        "8 min 01 s",
        "rlreason run quickstart",
        "56e96e5c0ffee",
        "torch==2.13.0",
        "stages/02-grpo/checkpoint",
        "Example CPU @ 2.60GHz",
        'name = "quickstart"',
        "Greedy decoding, 1 sample a problem",
    ):
        assert expected in text


def test_the_island_is_strict_json_with_every_series(run_dir: Path) -> None:
    island = build(run_dir).island
    grpo = island["stages"][1]
    assert len(grpo["steps"]) == 70
    for key in ("reward/mean", "accuracy/heldout", "entropy", "mismatch/k3", "groups/kept", "verdict/wrong"):
        assert len(grpo["series"][key]) == 70
    assert grpo["series"]["kl/reference"][22] is None, "NaN has no place in JSON"
    assert {one["stage"] for one in island["rollouts"]} == {"grpo", "traces"}


def test_the_doctors_newest_finding_and_the_shares_over_steps_are_shown(run_dir: Path) -> None:
    document = build(run_dir)
    for expected in (
        "Router: the sampler sends tokens to other experts. Leave out the tokens that differ wildly (IcePop, Ling team "
        '2025). correction = "icepop", correction_low = 0.5, correction_high = 5.0',
        "drawn by version68 to 69",
        "dtype of trainer, samplerfloat32, bfloat16",
        "token-layers sent elsewhere2.1 %",
        "completions of weights that are gone3",
        "routerthe trainer's experts with the sampler's60 %0.031.20.0009",
        "transformthe recipe's temperature with the sampler's0 %000",
        "all of itthe trainer with the sampler0.0311.80.0027",
        "7 of 14 diagnoses; all are in mismatch.jsonl",
    ):
        assert expected in document.flat, expected
    assert document.flat.count("Sampler vs trainer: why") == 1
    colours = [value for tag, name, value in document.attributes if tag == "i" and name == "style" and "share" in value]
    assert len(colours) == 7 * 4, "a cause without a share has no bar"


def test_a_doctors_file_that_is_torn_or_strange_is_shown_as_far_as_it_goes(run_dir: Path, fake: ModuleType) -> None:
    path = run_dir / "stages" / "02-grpo" / "mismatch.jsonl"
    bad = "".join(fake.HOSTILE)
    odd = {"step": 3, "versions": "x", "parts": {"router": {"mean": "a", "share": 1e9}}, "advice": {"cause": bad}}
    path.write_text(json.dumps(odd | {"trainer_dtype": bad, "experts": [bad], "rerouted": True}) + '\n{"step": 4, "pa')
    document = build(run_dir)
    assert "02-grpo/mismatch.jsonl: 1 unreadable line left out." in document.flat
    assert "drawn by version–" in document.flat
    assert document.tags.count("script") == 2
    assert "img" not in document.tags
    path.write_text("{}\n")
    assert "Sampler vs trainer: why" not in build(run_dir).flat


def test_nothing_is_loaded_from_anywhere(run_dir: Path) -> None:
    document = build(run_dir)
    loads = [value for _, name, value in document.attributes if name in LOADING]
    assert loads
    assert all(value.startswith(("#", "data:")) for value in loads)
    assert not {"iframe", "object", "embed", "base", "img"} & set(document.tags)
    style = "".join(document.styles)
    assert "url(" not in style
    assert "@import" not in style
    script = document.scripts[-1][1]
    assert re.findall(r"https?://[^\"]+", script) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import)\b *\(?", script)


def test_the_policy_allows_this_script_and_no_other(run_dir: Path) -> None:
    document = build(run_dir)
    policy = next(value for tag, _, value in document.attributes if tag == "meta" and "default-src" in value)
    digest = base64.b64encode(hashlib.sha256(document.scripts[-1][1].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}';" in policy


def test_hostile_text_stays_text(run_dir: Path, fake: ModuleType) -> None:
    """Markup in completions, and in every other text of the run, makes no element and no attribute."""
    clean = build(run_dir)
    bad = "".join(fake.HOSTILE)

    def poison(manifest: dict[str, Any]) -> None:
        manifest["command"] = bad
        manifest["packages"] = {bad: bad}
        manifest["data"][bad] = {"source": bad, "fingerprint": bad, "size": bad}
        manifest["hardware"] = {"cpu": bad, "gpus": [bad]}
        manifest["stages"][4] |= {"name": bad, "kind": bad, "parents": [bad], "checkpoint": bad, "error": bad}

    edit_manifest(run_dir, poison)
    (run_dir / "recipe.toml").write_text(f"# {bad}\n", errors="replace")
    result = json.loads((run_dir / "eval" / "final-grpo.json").read_text())
    result |= {"suite": bad, "by_tag": {bad: result["accuracy"]}}
    (run_dir / "eval" / "bad.json").write_text(json.dumps(result))
    document = build(run_dir)

    assert document.tags.count("script") == clean.tags.count("script") == 2
    assert "img" not in document.tags
    assert not [name for _, name, _ in document.attributes if name.startswith("on")]
    assert document.scripts[-1] == clean.scripts[-1]
    raw = (run_dir / "report.html").read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202e\u2066\u2028]", raw)


def test_hostile_completions_arrive_unchanged(run_dir: Path, fake: ModuleType) -> None:
    groups = [group for one in build(run_dir).island["rollouts"] for group in one["groups"]]
    responses = {row["response"] for group in groups for row in group["rows"]}
    for text in fake.HOSTILE:
        assert f"<think>{text}</think><answer>{text}</answer>" in responses
    cut = next(row for group in groups for row in group["rows"] if row["cut"])
    assert len(cut["response"]) == rollouts.MAX_RESPONSE
    assert cut["cut"] == 2 * len("spam " * 20_000) + len("<think></think><answer></answer>") - rollouts.MAX_RESPONSE


@pytest.mark.parametrize("state", ["running", "failed"])
def test_a_run_that_is_not_done_says_so(fake: ModuleType, tmp_path: Path, state: str) -> None:
    text = build(fake.write_fake_run(tmp_path / "run", state, 200)).flat
    expected = {
        "running": "This run is not finished: stage grpo is running, 41 of 70 steps are done; its last step was",
        "failed": "This run failed in stage grpo after step 40: the loss is not finite at step 43 <b>",
    }
    assert expected[state] in text
    assert "02-grpo/metrics.jsonl: 1 unreadable line left out" in text
    assert "02-grpo/rollouts.jsonl: 1 unreadable line left out" in text
    assert "Held-out accuracy during GRPO: 45 % at step 9, 74 % at step 39 (not evaluated yet)." in text
    assert "No model has been evaluated yet." in text


def test_every_file_but_the_manifest_may_be_missing(run_dir: Path) -> None:
    for path in [*run_dir.rglob("*.jsonl"), *run_dir.glob("eval/*"), run_dir / "recipe.toml"]:
        path.unlink()
    text = build(run_dir).flat
    assert "recipe.toml is missing" in text
    assert "No rollouts were recorded." in text
    assert "Stage grpo is done but has no metrics.jsonl that could be read." in text


def test_a_bare_manifest_is_enough(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert "manifest.json lists no stages." in build(tmp_path).flat


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "manifest.json is missing"), ("{", "not valid JSON"), ("[]", "must hold a JSON object, holds list")],
)
def test_no_run_is_a_usage_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        report.build(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_no_directory_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such run directory"):
        report.build(tmp_path / "nowhere")


def test_broken_evaluations_are_left_out_and_named(run_dir: Path) -> None:
    (run_dir / "eval" / "torn.json").write_text('{"model": "grp')
    (run_dir / "eval" / "bare.json").write_text('{"model": "grpo"}')
    text = build(run_dir).flat
    assert "eval/torn.json is not valid JSON; left out." in text
    assert "eval/bare.json has no accuracy with an interval; left out." in text


def test_writing_is_atomic_and_leaves_nothing_behind(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report.build(run_dir)
    before = (run_dir / "report.html").read_bytes()
    names = sorted(path.name for path in run_dir.iterdir())

    def full_disk(handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(page.os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        report.build(run_dir)
    assert (run_dir / "report.html").read_bytes() == before
    assert sorted(path.name for path in run_dir.iterdir()) == names


def test_many_rollouts_are_sampled_in_whole_groups_and_the_page_says_so(fake: ModuleType, tmp_path: Path) -> None:
    run_dir = fake.write_fake_run(tmp_path / "run", "done", 20_000)
    document = build(run_dir)
    grpo = document.island["rollouts"][0]
    shown = sum(len(group["rows"]) for group in grpo["groups"])
    assert rollouts.MAX_ROLLOUTS * 0.4 < shown <= rollouts.MAX_ROLLOUTS // 2
    assert all(len(group["rows"]) in (1, 8) for group in grpo["groups"])
    assert {group["step"] for group in grpo["groups"]} >= set(range(69)), "spread over all steps"
    assert "grpo: 20,007 recorded" in document.flat
    assert f"This page holds {shown:,} of them" in document.flat
    assert (run_dir / "report.html").stat().st_size < 4_000_000


def test_many_steps_are_thinned_and_the_page_says_so(run_dir: Path) -> None:
    path = run_dir / "stages" / "01-cold_start" / "metrics.jsonl"
    rows = [{"step": i, "loss": 1 / i} | ({"accuracy/heldout": 0.5} if i % 1001 == 0 else {}) for i in range(1, 9001)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = build(run_dir)
    steps = document.island["stages"][0]["steps"]
    assert 1_500 <= len(steps) <= 1_520
    assert {1001, 2002, 9000} <= set(steps)
    assert "Charts show every 6th of 9,000 steps" in document.flat


def test_a_step_written_again_after_a_resume_counts_once(run_dir: Path) -> None:
    path = run_dir / "stages" / "01-cold_start" / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 5}\n{"step": 1, "loss": 9}\n{"step": 2, "loss": 4}\n')
    stage = build(run_dir).island["stages"][0]
    assert stage["steps"] == [1, 2]
    assert stage["series"] == {"loss": [9, 4]}


def test_the_report_needs_no_torch() -> None:
    code = (
        "import sys, rlreason.report; print([m for m in ('torch', 'transformers', 'ray', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
