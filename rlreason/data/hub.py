"""Hub data sets by id, through ``datasets``: their rows are read by the same code as those of files."""

import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import getproxies

from rlreason.data.files import MissingSource
from rlreason.data.rows import NumberedRows, ProblemTable, RowFormat, problems_from_rows
from rlreason.errors import UsageError

__all__ = ["hub_rows", "is_hub_id", "read_hub"]

_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[^:/\s]*))?(?::(?P<split>[^:/\s]+))?")


def is_hub_id(name: str) -> bool:
    """Whether ``name`` is written as ``owner/name``, ``owner/name:config`` or ``owner/name:config:split``."""
    return _HUB_ID.fullmatch(name) is not None


def read_hub(hub_id: str, form: RowFormat, *, split: str, setting: str) -> ProblemTable:
    """All problems of a hub data set, in order: see ``hub_rows``."""
    return problems_from_rows(hub_rows(hub_id, split=split, setting=setting), form, source=hub_id)


def hub_rows(hub_id: str, *, split: str, setting: str) -> NumberedRows:
    """All rows of a hub data set with their numbers; ``split`` is read where the id names none.

    A folder ``owner/name`` in the current folder is read instead of the hub, as ``datasets`` does.
    Raises MissingSource where the hub can't be reached or hasn't the set, or ``datasets`` is not installed, UsageError
    where its config, split or rows are wrong; both name the id, and ``setting`` ("data.train"), by which a local file
    can be given instead.
    """
    found = _HUB_ID.fullmatch(hub_id)
    if found is None:
        raise UsageError(f"{hub_id!r} is no hub id; write owner/name, owner/name:config or owner/name:config:split")
    instead = f"a local file can be given instead: {setting}=PATH"
    try:
        import datasets
    except ImportError as error:
        raise MissingSource(f"{hub_id}: hub data needs datasets: pip install 'rlreason[train]'; {instead}") from error
    try:
        with _without_retries(datasets):
            rows = datasets.load_dataset(found["name"], found["config"] or None, split=found["split"] or split)
    except (ConnectionError, FileNotFoundError) as error:
        raise MissingSource(f"data set {hub_id!r} can't be had from the hub: {_reason(error)}; {instead}") from error
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"data set {hub_id!r}: {_reason(error)}; {instead}") from error
    return _numbered(rows)


@contextmanager
def _without_retries(datasets: ModuleType) -> Iterator[None]:
    """Where the hub's name does not resolve, only what is on this machine is looked at: five retries and their 24
    seconds would bring nothing. Behind a proxy names are the proxy's business."""
    import huggingface_hub

    host = urlsplit(huggingface_hub.constants.ENDPOINT).hostname
    if getproxies() or datasets.config.HF_HUB_OFFLINE or _resolves(str(host)):
        yield
        return
    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def _numbered(rows: Iterable[Mapping[str, object]]) -> NumberedRows:
    yield from enumerate(rows, start=1)


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
