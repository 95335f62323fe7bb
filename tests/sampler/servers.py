"""Servers that tests draw from: vLLM's own, and one that misbehaves as it is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rlreason.policy.policies import Policy
from rlreason.sampler.vllm_engine import CPU_ENVIRONMENT, ENVIRONMENT


@contextmanager
def vllm_server(policy: Policy, folder: Path) -> Iterator[tuple[str, Path]]:
    """(URL, model folder) of vLLM's server on a port of this host, with ``policy`` as "tiny"."""
    model, log = folder / "tiny", folder / "server.log"
    policy.save(model)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as free:
        port = free.server_address[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(model), "--served-model-name", "tiny",
        "--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "16",
        "--kv-cache-memory-bytes", str(64 << 20), "--logprobs-mode", "processed_logprobs",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    environment = {**os.environ, **ENVIRONMENT, **CPU_ENVIRONMENT}
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


#: (path, headers, body) -> (status, headers, body); a status of 0 closes the connection without an answer.
Reply = Callable[[str, dict[str, str], dict[str, Any]], tuple[int, dict[str, str], object]]


@contextmanager
def fake_server(reply: Reply) -> Iterator[str]:
    """URL of a server that answers as ``reply`` says, which several threads call."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, answer = reply(self.path, dict(self.headers), body)
            if not status:
                self.close_connection = True
                self.connection.close()
                return
            content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def chat_answer(text: str, finish_reason: str = "stop", **more: object) -> dict[str, object]:
    """What an OpenAI server says."""
    message = {"role": "assistant", "content": text, **more}
    usage = {"prompt_tokens": 7, "completion_tokens": 5}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}], "usage": usage}
