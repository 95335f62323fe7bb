"""The house stands: imports point one way, the light rooms are light, the wheel holds the tree, the tail is short."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"rewards": ROOT / "rewards", "eval": ROOT / "eval", "recipes": ROOT / "recipes"}
#: Rooms of rlreason/ that a room may import from; types, errors, cores, streams, secrets, attention_options and itself
#: are always allowed.
ALLOWED = {
    "rewards": set(),
    "eval": {"rewards"},
    "objective": set(),
    "run": set(),
    "report": {"eval"},
    "data": {"tasks"},
    "tasks": set(),
    "traces": {"rewards", "run", "config"},
    "policy": {"objective", "data", "config", "delivery"},
    "cluster": {"config"},
    "delivery": set(),
    "trainer": {"objective", "policy", "cluster", "delivery", "config"},
    "sizing": {"objective", "policy", "trainer"},
    "sampler": {"data", "cluster", "delivery", "config"},
    "diagnose": {"objective", "policy", "trainer", "run", "config"},
    "stages": {
        "diagnose",
        "objective",
        "policy",
        "cluster",
        "trainer",
        "sampler",
        "data",
        "run",
        "config",
        "traces",
        "sizing",
    },
}
#: Files outside the rooms that may import what they need: they wire.
TORCH_ROOMS = {
    "objective",
    "policy",
    "cluster",
    "delivery",
    "trainer",
    "sizing",
    "sampler",
    "diagnose",
    "stages",
    "job",
    "doctor",
    "evaluation",
    "plan",
    "api",
    "upcycle",
    "routing",
    "wide_routers",
    "consolidate",
}
MAX_FUNCTION, MAX_FILE, MAX_PARAMETERS = 60, 400, 7


def source_files() -> list[Path]:
    """Every Python file of the product, each once, by its real path."""
    return [
        path
        for top in (ROOT / "rlreason", ROOT / "rewards", ROOT / "eval")
        for path in sorted(top.rglob("*.py"))
        if not any(parent.is_symlink() for parent in path.parents)
    ]


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] != "rlreason" else parts[1]


def imports_of(path: Path) -> list[str]:
    """Modules imported at run time (imports under TYPE_CHECKING do not count)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    names: list[str] = []
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def wrong_imports(room: str, names: list[str]) -> list[str]:
    always = {"types", "errors", "cores", "streams", "secrets", "attention_options", "extensions", "proportion"}
    always |= {"routing", "wide_routers"}  # of policies, and of the embedded engine's models
    allowed = ALLOWED[room] | {room} | always
    return [name for name in names if name.startswith("rlreason.") and name.split(".")[1] not in allowed]


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    if room in ALLOWED:
        assert not wrong_imports(room, imports_of(path))
    if room not in TORCH_ROOMS:
        heavy = {"torch", "transformers", "ray", "vllm"}
        assert not [name for name in imports_of(path) if name.split(".")[0] in heavy]


def test_the_import_guard_can_fail() -> None:
    assert wrong_imports("rewards", ["rlreason.stages.grpo"])
    assert wrong_imports("stages", ["rlreason.eval.summary"])


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            count = len([argument for argument in arguments if argument.arg not in {"self", "cls"}])
            decorators = {ast.unparse(d).split("(")[0].rpartition(".")[2] for d in node.decorator_list}
            if not decorators & {"command", "verifier"}:  # their parameters are a user's options
                assert count <= MAX_PARAMETERS, f"{node.name} takes {count} parameters"
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_hasattr_and_no_stdlib_names(path: Path) -> None:
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "hasattr"]
    if room_of(path) in {"rewards", "eval"} and path.stem != "__init__":
        assert path.stem not in sys.stdlib_module_names


def run_python(code: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "module",
    ["rlreason", "rlreason.rewards.mix", "rlreason.scorer", "rlreason.eval.summary", "rlreason.config", 
     "rlreason.check", "rlreason.cli", "rlreason.plan", "rlreason.report", "rlreason.data.source"],
)  # fmt: skip
def test_light_import(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'ray', 'vllm', 'transformers') if m in sys.modules])"
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize("room", ["rewards", "eval"])
def test_one_module_one_name(room: str) -> None:
    assert f"import rlreason.{room}, not {room}" in run_python(f"import {room}")


def tree_content() -> set[str]:
    """What the wheel must hold: every Python file and data file of the tree, by its installed path."""
    content = {
        str(
            Path(
                "rlreason",
                *(path.relative_to(ROOT).parts if room_of(path) in ROOMS else path.relative_to(ROOT).parts[1:]),
            )
        )
        for path in source_files()
    }
    patterns = ("report/*.html", "report/*.css", "report/*.js", "tasks/*.toml", "py.typed")
    for pattern in (f"rlreason/{one}" for one in patterns):
        content |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)}
    return content | {
        f"rlreason/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("recipes/*/*") if path.is_file()
    }


def test_wheel_holds_the_tree(tmp_path: Path) -> None:
    pytest.importorskip("build")
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # what an older tree left there would get into the wheel
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == tree_content()
    assert {name.split("/")[0] for name in names} == {"rlreason"}
