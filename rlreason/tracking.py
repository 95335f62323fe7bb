"""Opens what a run tells of itself beside its metrics.jsonl: trackers; and warns of secrets in the recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlreason.config import Recipe
from rlreason.errors import UsageError
from rlreason.rewards.environment import FromEnvironment, from_option
from rlreason.run.directory import RunDirectory
from rlreason.run.interrupt import Interrupted
from rlreason.run.sinks import TrackedRun, Trackers
from rlreason.run.trackers import make_trackers
from rlreason.secrets import literal_secrets, masked

Tell = Callable[[str], None]


@contextmanager
def open_trackers(recipe: Recipe, run: RunDirectory, tell: Tell) -> Iterator[Trackers]:
    """The trackers that the recipe names; they are told how the run ended."""
    logging = recipe.logging
    config = masked(recipe.model_dump(mode="json", exclude_none=True))
    assert isinstance(config, dict)
    about = TrackedRun(
        project=logging.project or recipe.name,
        name=logging.run_name or run.root.resolve().name,
        root=run.root.resolve(),
        folder=None if logging.dir is None else Path(logging.dir).expanduser().resolve(),
        entity=logging.entity,
        config=config,
        resumed=any(entry.started is not None for entry in run.manifest.stages),
    )
    trackers = Trackers.start(make_trackers(logging.trackers), about, tell)
    try:
        yield trackers
    except Interrupted:
        trackers.close(run, failed=False)
        raise
    except BaseException:
        trackers.close(run, failed=True)
        raise
    trackers.close(run, failed=False)


def check_secrets(recipe: Recipe, tell: Tell) -> None:
    """Warn of keys and passwords that the recipe holds. Raises UsageError where a variable that it names is not set."""
    for place, table in recipe.reward_tables.items():
        for name, term in table.items():
            for key, value in term.items() if isinstance(term, dict) else ():
                option = from_option(value)
                if isinstance(option, FromEnvironment) and option.name not in os.environ:
                    raise UsageError(f'{place}."{name}".{key}: the environment has no variable {option.name}')
    for name, endpoint in recipe.endpoint.items():
        if endpoint.api_key_env is not None and endpoint.api_key_env not in os.environ:
            raise UsageError(f"endpoint.{name}.api_key_env: the environment has no variable {endpoint.api_key_env}")
    for where in literal_secrets(recipe.model_dump(mode="json")):
        instead = 'write { env = "NAME" }' if where.startswith("reward.") else "keep it out of the recipe"
        tell(f"warning: {where} looks like a secret, and recipe.toml of the run directory will hold it: {instead}")
