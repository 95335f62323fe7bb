"""Which Ray a run joins: the one it names, else the one of this host, else none; one that does not answer is said."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from rlreason.errors import UsageError

#: Seconds in which a Ray's port must take a connection.
ANSWER = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RayAddress:
    """A Ray to join. ``argument``: for ``ray.init``, which looks by itself, and takes this host's token along, where it
    is None or "auto". ``said``: who named it, and what it is, for a message."""

    argument: str | None
    said: str


def find_ray(named: str | None) -> RayAddress | None:
    """The Ray that ``named`` (``cluster.address``), else RAY_ADDRESS, else a ``ray start`` on this host says; None: one
    is to be started, as where the last ``ray start`` of this host has ended without taking its name away.

    Raises UsageError where the one that was named does not take a connection within ``ANSWER`` seconds.
    """
    from ray._private import services  # Ray has no public way to ask which one it would join

    variable = os.environ.get("RAY_ADDRESS") or None
    told = variable if named in (None, "auto") and variable else named
    said = f"RAY_ADDRESS = {told!r}" if told is not named else f"cluster.address = {told!r}"
    if told == "local":
        return None
    if told is not None and told != "auto":
        _reach(told, said)
        return RayAddress(argument=told, said=said)
    try:
        here = services.get_ray_address_from_environment(told, None)
    except ConnectionError as error:
        raise UsageError(f"{said}: no Ray runs on this host: ray start --head, or leave it out") from error
    if told is None:
        if here is None or not _answers(here):
            return None
        return RayAddress(
            argument=None, said=f'the Ray that runs on this host, {here} (cluster.address = "local" starts one)'
        )
    _reach(here, said)
    return RayAddress(argument="auto", said=said)


def _reach(address: str, said: str) -> None:
    if not _answers(address):
        raise UsageError(
            f"{said}: no Ray answers at {address}: start it (ray start --head), name another, or name none and one is "
            "started on this host"
        )


def _answers(address: str) -> bool:
    """Whether the port takes a connection; an address of another form is left to Ray."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return True
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER):
            return True
    except (OSError, OverflowError):
        return False
