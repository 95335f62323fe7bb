"""Keys and passwords: found in names and texts, and never written where a run is looked at.

A recipe names a secret instead of holding it: ``api_key = { env = "JUDGE_KEY" }``. What is written literally all the
same is masked in the manifest, the report, trackers and messages; only recipe.toml, from which a run goes on, has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

MASK = "***"
_NAME = r"(?:api_?key|secret(?:_?key)?|password|passwd|credentials?|(?:access_|auth_|bearer_|hf_)?token)"
#: Keys whose value is a secret: ``api_key``, ``openai_api_key``; not ``api_key_env`` and not ``max_tokens``.
_SECRET_NAME = re.compile(rf"(?:^|.*[_\-.])?{_NAME}", re.IGNORECASE)
#: The forms that well-known services give their keys.
_KEYS = (
    r"sk-[A-Za-z0-9_\-]{8,}|hf_[A-Za-z0-9]{16,}|gh[opsur]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w\-]{16,}"
    r"|AKIA[0-9A-Z]{16}|AIza[\w\-]{30,}|xox[abprs]-[\w\-]{8,}|wandb_v1_\w{16,}|nvapi-[\w\-]{16,}"
    r"|eyJ[\w\-]{10,}\.[\w\-]{10,}\.[\w\-]{5,}"
)
_KEY = re.compile(rf"(?<![A-Za-z0-9])(?:{_KEYS})")
#: ``api_key = "…"``, ``--token=…``, ``"password": "…"`` in a text; a table such as ``{ env = "NAME" }`` is no secret.
_ASSIGNED = re.compile(rf"({_NAME}[\"']?\s*[=:]\s*\\?[\"']?)(?!None\b)([^\s\"'{{}},\\]{{4,}})", re.IGNORECASE)
_LOGIN = re.compile(r"(://)[^/\s:@\"']+:[^/\s@\"']+@")


def mask(text: str) -> str:
    """``text`` with what looks like a key, a password after its name, or a login in a URL as ``***``."""
    text = _LOGIN.sub(rf"\1{MASK}@", _KEY.sub(MASK, text))
    return _ASSIGNED.sub(rf"\g<1>{MASK}", text)


def is_secret(name: str, value: object) -> bool:
    """Whether ``value`` of the key ``name`` is a secret written literally."""
    if not isinstance(value, str) or not value:
        return False
    named = _SECRET_NAME.fullmatch(name.rpartition(".")[2]) is not None
    return named or _KEY.search(value) is not None or _LOGIN.search(value) is not None


def masked(table: object, name: str = "") -> object:
    """A copy of a table of plain values, as of a recipe, in which secrets are ``***``."""
    if isinstance(table, Mapping):
        return {key: masked(value, str(key)) for key, value in table.items()}
    if isinstance(table, Sequence) and not isinstance(table, str):
        return [masked(value, name) for value in table]
    return MASK if is_secret(name, table) else table


def literal_secrets(table: object, name: str = "") -> Iterator[str]:
    """Dotted names of the values in a table that are secrets written literally."""
    if isinstance(table, Mapping):
        for key, value in table.items():
            part = f'"{key}"' if "." in str(key) else str(key)
            yield from literal_secrets(value, f"{name}.{part}" if name else part)
    elif isinstance(table, Sequence) and not isinstance(table, str):
        for value in table:
            yield from literal_secrets(value, name)
    elif is_secret(name, table):
        yield name
