"""A run joins the Ray that it names or that runs on this host; one that is gone is said at once, or started anew."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlreason.errors import UsageError

ray: Any = pytest.importorskip("ray", reason="Ray is not installed")

from rlreason.cluster.ray_address import find_ray  # noqa: E402
from rlreason.cluster.session import start_ray  # noqa: E402


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Ray's, of this test alone: what other Rays of this machine leave does not count. Its name must be short."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = Path(tempfile.mkdtemp(prefix="rl"))
    monkeypatch.setenv("RAY_TMPDIR", str(path))
    (path / "ray").mkdir()
    assert not ray.is_initialized()
    yield path / "ray"
    ray.shutdown()
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def dead() -> str:
    """An address at which nobody is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_a_ray_that_ended_without_a_word_is_passed_over(folder: Path, dead: str) -> None:
    (folder / "ray_current_cluster").write_text(dead)
    assert find_ray(None) is None
    assert start_ray(ray, None)
    assert ray.get_runtime_context().gcs_address != dead


@pytest.mark.parametrize("named", ["cluster.address", "RAY_ADDRESS", "client"])
def test_a_named_ray_that_is_gone_is_said(named: str, folder: Path, dead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"ray://{dead}" if named == "client" else dead
    if named == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", address)
    said = "RAY_ADDRESS" if named == "RAY_ADDRESS" else "cluster.address"
    with pytest.raises(UsageError, match=rf"^{said} = '{address}': no Ray answers at {address}: start it .*$"):
        start_ray(ray, None if named == "RAY_ADDRESS" else address)


def test_auto_is_the_one_of_this_host(folder: Path, dead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    none = functools.lru_cache(set)  # as Ray's own, which it clears; others run on this machine
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", none)
    with pytest.raises(UsageError, match=r"^cluster\.address = 'auto': no Ray runs on this host: "):
        start_ray(ray, "auto")
    (folder / "ray_current_cluster").write_text(dead)
    with pytest.raises(UsageError, match=rf"^cluster\.address = 'auto': no Ray answers at {dead}: "):
        start_ray(ray, "auto")
    monkeypatch.setenv("RAY_ADDRESS", dead)  # Ray takes this before it looks
    with pytest.raises(UsageError, match=rf"^RAY_ADDRESS = '{dead}': no Ray answers"):
        start_ray(ray, "auto")
    assert find_ray("local") is None


def test_the_ray_that_runs_on_this_host_is_joined(folder: Path) -> None:
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port=0", "--num-cpus=3"]
    head = subprocess.Popen(
        [*command, "--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ},
    )
    try:
        file = folder / "ray_current_cluster"
        while not file.exists():
            assert head.poll() is None
            time.sleep(0.2)
        assert start_ray(ray, None)
        assert ray.get_runtime_context().gcs_address == file.read_text()
        assert ray.cluster_resources()["CPU"] == 3.0
        ray.shutdown()
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)
