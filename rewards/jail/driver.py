"""What runs in a jailed child: a program on standard input, a program whose functions are called, or a judge.

The channel carries frames: four bytes of length, then a JSON tree. The first frame is the job. Nothing here is a
secret or a verdict: a program may do with this process and its channel what it likes, and gains no more than by
returning another value. Standard library only: loaded in the zygote.
"""

from __future__ import annotations

import json
import os
import struct

from rlreason.rewards.jail import data as jail_data
from rlreason.rewards.jail import judge as jail_judge
from rlreason.rewards.jail.data import Tree
from rlreason.rewards.jail.program import Program, end, offer
from rlreason.rewards.jail.serve import Server


class Channel:
    """Frames over a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def receive(self) -> list[Tree]:
        """The next frame. Ends the process when the other side has closed."""
        tree = jail_data.loads(self._frame())
        assert isinstance(tree, list)
        return tree

    def job(self) -> list[Tree]:
        """The first frame. It comes from the trusted process as it is."""
        tree = json.loads(self._frame())
        assert isinstance(tree, list)
        return tree

    def _frame(self) -> bytes:
        (size,) = struct.unpack(">I", self._read(4))
        return self._read(size)

    def _read(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            part = os.read(self._descriptor, min(count, 1 << 20))
            if not part:
                os._exit(1)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def send(self, tree: list[Tree]) -> None:
        """Write one frame."""
        self.send_bytes(jail_data.dumps(tree))

    def send_bytes(self, data: bytes) -> None:
        """Write one frame that is already encoded."""
        data = struct.pack(">I", len(data)) + data
        while data:
            data = data[os.write(self._descriptor, data) :]

    def close(self) -> None:
        """Close it: the program that follows has no use for it."""
        os.close(self._descriptor)


def drive(descriptor: int) -> None:
    """Do the one job that comes over the channel, then end the process.

    A job is its kind, then the program's text, then what else there is: ``["stdin", source, prelude, packages]``,
    ``["serve", source, prelude, packages]``, or a judge's. ``prelude``: see ``Program``. Where there is one, the first
    frame back is ``["header", reason]``, sent before the program runs: "" or why the prelude failed by itself. Of a
    program on standard input, only the reason.
    """
    channel = Channel(descriptor)
    kind, *job = channel.job()
    if kind not in ("stdin", "serve"):
        end(lambda: jail_judge.judge(channel, str(kind), job))
    source, prelude, packages = [*job, "", {}][:3]  # the empty program that tries a jail out has nothing else
    assert isinstance(packages, dict)
    offer(packages)
    if kind == "stdin":
        if not prelude:
            channel.close()

        def heard(reason: str) -> None:
            if reason:
                channel.send(["header", reason])
            channel.close()

        program = Program(str(source), "__main__", str(prelude), heard)
        end(program.run, program.module)

    def told(reason: str) -> None:
        channel.send(["header", reason])

    program = Program(str(source), "solution", None if prelude is None else str(prelude), told)
    end(lambda: _serve(channel, program))


def _serve(channel: Channel, program: Program) -> None:
    """Run the program as a module, tell its names, then answer calls until the channel closes."""
    program.run()
    server = Server(program, channel)
    channel.send(["ready", server.ready()])
    while True:
        channel.send(server.answer(channel.receive()))
