"""When a check counts: again after a lost jail; and once more, alone, after a run that a busy host has starved."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

from rlreason.rewards.jail.alone import alone, beside_others
from rlreason.rewards.jail.jail import Jail, Limits, Require, leased
from rlreason.rewards.jail.outer import Outer
from rlreason.rewards.jail.run import RunLost
from rlreason.rewards.limit import item_seconds, keeps_own_limit
from rlreason.rewards.programs.session import Tally
from rlreason.types import Verdict

_ATTEMPTS = 2  # a zygote may be killed from outside (out of memory, an operator): that is nobody's verdict
#: For the start of jails and for waiting on the other runs of this host, beside the limits themselves.
_GUARD_SECONDS = 240.0
#: A run that ran out of time and was without a processor for more of it than this was starved.
_STARVED_SHARE = 0.2


def attempt(
    check: Callable[[Jail], Tally],
    limits: Limits,
    *,
    require: Require = "best",
    visible: tuple[str, ...] = (),
    outer: Outer = "",
) -> Tally:
    """What ``check`` comes to in a jail, beside others; where it ran out of time for want of a processor, alone.

    Raises RunLost where jails do not hold on this host, and what ``check`` and ``leased`` raise.
    """
    keeps_own_limit(_GUARD_SECONDS + _ATTEMPTS * (item_seconds() or 0.0))
    walls = functools.partial(leased, require, visible, outer)
    with beside_others():
        tally, waited = _in_a_jail(check, walls)
    if tally.verdict is not Verdict.TIMED_OUT or waited < _STARVED_SHARE * limits.wall_seconds:
        return tally
    with alone():
        tally, _ = _in_a_jail(check, walls)
    return tally


def _in_a_jail(
    check: Callable[[Jail], Tally], walls: Callable[[], AbstractContextManager[Jail]]
) -> tuple[Tally, float]:
    """The tally, and the seconds that a run which was ended had waited for a processor."""
    for number in range(_ATTEMPTS):
        try:
            with walls() as jail:
                return check(jail), jail.waited_seconds
        except RunLost:
            if number + 1 < _ATTEMPTS:
                continue
            with walls():  # raises where the host is at fault; else it is what the program does
                pass
    tally = Tally(total=1)
    tally.fail("", Verdict.WRONG, f"its jail was lost {_ATTEMPTS} times")
    return tally, 0.0
