"""The page in a real browser: the scripts run without an error, hostile text stays inert, filters do what they say.

Skipped where no Chromium is installed. The browser has no network here, and the page must not want one.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlreason import report

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1400,2400"),
    *("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--virtual-time-budget=4000", "--enable-logging=stderr", "--v=0", "--dump-dom"),
]

#: Uses the page as a reader does, and leaves what it saw in an element of its own.
DRIVER = """
const seen = {};
const form = document.getElementById("filters");
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
async function set(values) {
  form.reset();
  for (const [name, value] of Object.entries(values)) form.elements[name].value = value;
  form.dispatchEvent(new Event("input"));
  await wait(300);
  const list = document.getElementById("problems");
  for (const box of list.children) box.open = true;
  await wait(50);
  return {
    found: document.getElementById("found").textContent,
    badges: [...list.querySelectorAll(".badge")].map((one) => one.textContent),
    numbers: [...list.querySelectorAll(".completion header")].map((one) => one.textContent),
    marks: [...list.querySelectorAll("mark")].map((one) => one.textContent),
    text: list.textContent.slice(0, 200000),
  };
}
(async () => {
  seen.all = await set({});
  seen.wrong = await set({ verdict: "wrong", stage: "grpo" });
  seen.steps = await set({ from: "68", to: "69", stage: "grpo" });
  seen.best = await set({ sort: "advantage-" });
  seen.long = await set({ sort: "tokens-" });
  seen.text = await set({ text: "ANSWER>NOTHING LIKE IT" });
  seen.hostile = await set({ text: "window.pwned" });
  seen.bidi = await set({ text: "evil.example" });
  const chart = document.querySelector("#stage-2 .chart svg");
  chart.focus();
  for (const key of ["Home", "ArrowRight", "ArrowRight"]) chart.dispatchEvent(new KeyboardEvent("keydown", { key }));
  seen.read = [...document.querySelectorAll("#stage-2 .readout > b")].map((one) => one.textContent);
  seen.valuetext = chart.getAttribute("aria-valuetext");
  const fold = [...document.querySelectorAll("#stage-2 details.more")].pop();
  fold.open = true;
  await wait(50);
  seen.cells = fold.querySelectorAll("td").length;
  document.getElementById("theme").click();
  seen.theme = document.documentElement.dataset.theme;
  seen.pwned = typeof window.pwned;
  seen.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const out = document.createElement("output");
  out.id = "seen";
  out.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(seen).replace(/[\\ud800-\\udfff]/g, "?"))));
  document.body.append(out);
})();
"""


def browse(path: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's DOM after its scripts ran, and what the console said."""
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    errors = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return done.stdout.decode(errors="replace"), errors


@pytest.mark.parametrize("state", ["done", "running", "failed"])
def test_scripts_run_without_a_word_on_the_console(fake: ModuleType, tmp_path: Path, state: str) -> None:
    path = report.build(fake.write_fake_run(tmp_path / "run", state, 200))
    dom, console = browse(path, tmp_path / "profile")
    assert console == []
    assert 'data-ready="yes"' in dom
    assert dom.count('class="chart"') >= (34 if state == "done" else 22)
    assert "NaN" not in re.sub(r"<script.*?</script>|not finite \(NaN", "", dom, flags=re.S)
    assert "Infinity" not in re.sub(r"<script.*?</script>", "", dom, flags=re.S)


#: Draws the charts over the other axes, and leaves what their axes say.
AXES = """
(async () => {
  const seen = { units: {}, labels: {} };
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const choice = document.querySelector("#axis select");
  for (const value of ["tokens", "time", "step"]) {
    choice.value = value;
    choice.dispatchEvent(new Event("change"));
    const svgs = [...document.querySelectorAll(".charts .chart svg")];
    for (let turn = 0; turn < 40 && svgs.some((one) => !one.querySelector("text")); turn++) await wait(50);
    const last = (one) => [...one.querySelectorAll("text[text-anchor=end]:not(.end)")].pop().textContent;
    seen.units[value] = [...new Set(svgs.map(last))];
    seen.labels[value] = svgs.length;
    seen.lines = svgs.filter((one) => !one.querySelector("path[d^=M]")).length;
  }
  seen.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const out = document.createElement("output");
  out.id = "seen";
  out.textContent = btoa(JSON.stringify(seen));
  document.body.append(out);
})();
"""


@pytest.mark.parametrize("two", [False, True])
def test_charts_over_tokens_and_time(fake: ModuleType, tmp_path: Path, two: bool) -> None:
    run = fake.write_fake_run(tmp_path / "run", "done", 100)
    if two:
        other = fake.write_fake_run(tmp_path / "other", "running", 100)
        made = report.build_comparison(run, other, tmp_path / "two.html")
        _, console = browse(made, tmp_path / "first")
        assert console == []
    else:
        made = report.build(run)
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", made.read_text(encoding="utf-8"))
    driven = tmp_path / "driven.html"
    driven.write_text(html.replace("</body>", f"<script>{AXES}</script></body>"), encoding="utf-8")
    dom, console = browse(driven, tmp_path / "profile")
    assert console == []
    found = re.search(r'<output id="seen">(.*?)</output>', dom, flags=re.S)
    assert found, "the driver did not finish"
    seen = json.loads(base64.b64decode(unescape(found.group(1))))
    assert set(seen["units"]["step"]) == {"step"}
    assert "tokens" in seen["units"]["tokens"]
    assert set(seen["units"]["time"]) <= {"minutes", "hours"}
    assert len(set(seen["labels"].values())) == 1, "as many charts over every axis"
    assert seen["lines"] == 0, "every chart has its line"
    assert seen["wide"] <= 0


@pytest.fixture(scope="module")
def seen(fake: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver saw. The page's policy would refuse it, so it goes from this copy; the page itself keeps it."""
    folder = tmp_path_factory.mktemp("driven")
    html = report.build(fake.write_fake_run(folder / "run", "done", 400)).read_text(encoding="utf-8")
    html, replaced = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert replaced == 1
    driven = folder / "driven.html"
    driven.write_text(html.replace("</body>", f"<script>{DRIVER}</script></body>"), encoding="utf-8")
    dom, console = browse(driven, folder / "profile")
    assert console == []
    found = re.search(r'<output id="seen">(.*?)</output>', dom, flags=re.S)
    assert found, "the driver did not finish"
    result: dict[str, Any] = json.loads(base64.b64decode(unescape(found.group(1))))
    return result


def test_hostile_text_runs_nothing_even_without_the_policy(seen: dict[str, Any]) -> None:
    assert seen["pwned"] == "undefined"
    assert "<script>window.pwned=1</script>" in seen["hostile"]["text"]
    assert set(seen["hostile"]["marks"]) == {"window.pwned"}
    assert '<img src="https://evil.example/x.png"' in seen["bidi"]["text"]


def test_filters(seen: dict[str, Any]) -> None:
    assert seen["all"]["found"].startswith("Problems 1 to 20 of 114, 814 completions")
    assert set(seen["wrong"]["badges"]) == {"wrong"}
    assert set(re.findall(r"grpo, step (\d+)", seen["steps"]["text"])) <= {"68", "69"}
    assert seen["text"]["found"] == "Nothing matches these filters."


def test_order(seen: dict[str, Any]) -> None:
    advantages = [float(m) for one in seen["best"]["numbers"] for m in re.findall(r"advantage \+?([\d.]+)", one)]
    assert advantages[0] == max(advantages) > 1.5
    tokens = [int(m) for one in seen["long"]["numbers"] for m in re.findall(r"tokens (\d+)", one)]
    assert tokens[0] == max(tokens)


def test_one_cursor_reads_all_charts_of_a_stage(seen: dict[str, Any]) -> None:
    assert len(seen["read"]) >= 16
    assert set(seen["read"]) == {"step 2"}
    assert seen["valuetext"].startswith("step 2: held-out –, train ")


def test_values_theme_and_width(seen: dict[str, Any]) -> None:
    assert seen["cells"] >= 70 * 25
    assert seen["theme"] == "light"
    assert seen["wide"] <= 0, "nothing sticks out of the page"
