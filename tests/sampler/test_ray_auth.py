"""A Ray that is started here answers nobody who has no token: its port takes pickles from whoever may talk to it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ray = pytest.importorskip("ray")

from rlreason.cluster.session import start_ray  # noqa: E402

JOIN = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False)
except Exception as error:
    print("refused", error)
else:
    print("joined")
"""


def test_a_ray_that_is_started_here_wants_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert not ray.is_initialized()
    assert start_ray(ray, None)
    try:
        stranger = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
        address = ray.get_runtime_context().gcs_address
        done = subprocess.run(
            [sys.executable, "-c", JOIN, address],
            env=stranger,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "refused" in done.stdout
        assert "uthenticat" in done.stdout + done.stderr
    finally:
        ray.shutdown()
