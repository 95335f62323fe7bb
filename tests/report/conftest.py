"""The made-up run, for every test of this folder. Tests are no package, so its generator is loaded by its path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    """tests/report/fake_run.py as a module."""
    spec = importlib.util.spec_from_file_location("report_fake_run", Path(__file__).with_name("fake_run.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_dir(fake: ModuleType, tmp_path: Path) -> Path:
    """A finished run with a few hundred rollouts; tests may change it."""
    made: Path = fake.write_fake_run(tmp_path / "run", "done", 400)
    return made
