"""Writes peer_keys.json: the names of TRL's, verl's and OpenRLHF's settings, out of their wheels, which are not run.

``python tests/make_peer_keys.py FOLDER``: FOLDER holds trl-*.whl, verl-*.whl and openrlhf-*.whl (``pip download``).
docs/coming_from.md names settings of theirs; tests/test_coming_from.py holds them against this file, and
``pytest -m peer`` holds this file against the wheels in ``$PEER_WHEELS``.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import transformers
import yaml

FILE = Path(__file__).parent / "peer_keys.json"


def read(folder: Path, package: str, member: str) -> str:
    """The text of a file in the package's wheel."""
    (wheel,) = folder.glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(member)]
        return archive.read(name).decode()


def trl(folder: Path) -> set[str]:
    """Fields of GRPOConfig and of transformers' TrainingArguments, and parameters of GRPOTrainer."""
    names = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    for file in ("trl/trainer/grpo_config.py", "trl/trainer/base_config.py"):
        for node in ast.walk(ast.parse(read(folder, "trl", file))):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
    for node in ast.walk(ast.parse(read(folder, "trl", "trl/trainer/grpo_trainer.py"))):
        if isinstance(node, ast.ClassDef) and node.name == "GRPOTrainer":
            (init,) = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
            names |= {argument.arg for argument in (*init.args.args, *init.args.kwonlyargs)}
    return names - {"self"}


def verl(folder: Path) -> set[str]:
    """Dotted keys of the PPO trainer's configuration, but for profilers and critics."""

    def keys(table: dict[str, object], prefix: str) -> Iterator[str]:
        for name, value in table.items():
            if name not in {"profiler", "global_profiler", "critic", "skip", "qat", "ref", "reward_model"}:
                yield prefix + name
                yield from keys(value, f"{prefix}{name}.") if isinstance(value, dict) else ()

    return set(keys(yaml.safe_load(read(folder, "verl", "config/_generated_ppo_trainer.yaml")), ""))


def openrlhf(folder: Path) -> set[str]:
    """Options of train_ppo_ray; those of the optimizer are made for actor and critic."""
    text = read(folder, "openrlhf", "openrlhf/cli/train_ppo_ray.py")
    made = {
        name.replace("{prefix}", prefix)
        for name in re.findall(r'"--(\{prefix\}[\w.]+)"', text)
        for prefix in ("actor", "critic")
    }
    return made | set(re.findall(r'"--([\w.]+)"', text))


def versions(folder: Path) -> dict[str, str]:
    """Of each wheel."""
    return {path.name.split("-")[0]: path.name.split("-")[1] for path in sorted(folder.glob("*.whl"))}


def made(folder: Path) -> dict[str, object]:
    """What the file holds."""
    found = {"trl": trl(folder), "verl": verl(folder), "openrlhf": openrlhf(folder)}
    keys = {
        name: sorted(one for one in names if not one.startswith("_") and "._" not in one)
        for name, names in found.items()
    }
    return {"versions": {name: versions(folder)[name] for name in found}, **keys}


if __name__ == "__main__":
    FILE.write_text(json.dumps(made(Path(sys.argv[1])), indent=0) + "\n", encoding="utf-8")
