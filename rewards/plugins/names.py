"""What a plug-in's name says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

#: Whose signature a function has.
FRAMEWORKS = ("trl", "verl", "openrlhf")
#: The forms, for messages.
FORMS = (
    "pkg.mod:fn, path/file.py:fn, trl:pkg.mod:fn, verl:path.py:fn, openrlhf:path.py:fn, http:URL of a reward server, "
    "rm:FOLDER of a reward model"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a plug-in's name says. ``trl:judges/length.py:short`` is ``Target(prefix="trl", place="judges/length.py",
    function="short")``, ``rm:models/judge`` is ``Target(prefix="rm", place="models/judge", function="")``."""

    #: "trl", "verl", "openrlhf", "http", "rm" or "".
    prefix: str
    #: A file that ends in .py, a module, a URL (of "http") or a folder (of "rm").
    place: str
    function: str

    @property
    def is_file(self) -> bool:
        """Whether ``place`` is a file of code."""
        return bool(self.function) and self.place.endswith(".py")

    @property
    def is_module(self) -> bool:
        """Whether ``place`` is a module."""
        return bool(self.function) and not self.place.endswith(".py")

    @property
    def is_folder(self) -> bool:
        """Whether ``place`` is the folder of a reward model."""
        return self.prefix == "rm"

    @property
    def spec(self) -> str:
        """The name again."""
        return ":".join(part for part in (self.prefix, self.place, self.function) if part)

    @property
    def label(self) -> str:
        """A name for metrics: without the folders, so that it stays when the file moves; of a URL without what may be
        a secret."""
        if self.prefix == "http":
            url = urlsplit(self.place)
            return f"http:{url.hostname}{f':{url.port}' if url.port else ''}{url.path.rstrip('/')}"
        if self.is_file or self.is_folder:
            return replace(self, place=Path(self.place).name).spec
        return self.spec


def parse(spec: str) -> Target:
    """Take a plug-in's name apart. Raises ValueError where it is none."""
    prefix, _, rest = spec.partition(":")
    if prefix in {"http", "https"}:
        return _server(spec, rest)
    if prefix == "rm":
        if not rest:
            raise ValueError(f"plug-in {spec!r}: expected rm:FOLDER, a saved sequence-classification model")
        return Target(prefix="rm", place=rest, function="")
    if prefix not in FRAMEWORKS or ":" not in rest:
        prefix, rest = "", spec
    place, _, function = rest.rpartition(":")
    if not place or not function.isidentifier():
        raise ValueError(f"plug-in {rest!r}: expected pkg.mod:function or path/file.py:function")
    return Target(prefix=prefix, place=place, function=function)


def _server(spec: str, rest: str) -> Target:
    """``http:http://host:8000/score``, or the URL alone."""
    place = rest if spec.startswith("http:") and rest.startswith(("http://", "https://")) else spec
    try:
        url = urlsplit(place)
        known = bool(url.hostname) and url.port != 0
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"plug-in {spec!r}: expected http:URL, such as http:http://localhost:8000/score")
    if url.username is not None or url.password is not None:
        raise ValueError('plug-in http: a URL with a password; give it as token = { env = "NAME" }')
    return Target(prefix="http", place=place, function="")
