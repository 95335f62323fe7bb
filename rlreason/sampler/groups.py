"""Groups above samplers: what is asked for the samples of a problem, and finished completions put together again.

A sampler draws single completions; a group is the completions of one problem in one stream. What groups are called and
which requests they are made of are pure functions of the list of problems, so a stage that goes on in the middle of its
list asks for exactly what it would have asked for without the break.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field

from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.types import Completion, Group, Problem, Request, Sampler, SamplingParams

#: Seconds of one wait for completions.
WAIT = 1.0


def group_ids(problems: Sequence[Problem], stream: str) -> list[str]:
    """The group of each problem: "stream/p17"; a problem that comes again is a group of its own, "stream/p17#2"."""
    seen: Counter[str] = Counter()
    taken = {problem.id for problem in problems}
    found = []
    for problem in problems:
        seen[problem.id] += 1
        name = problem.id if seen[problem.id] == 1 else f"{problem.id}#{seen[problem.id]}"
        while name != problem.id and name in taken:  # another problem has this very id
            seen[problem.id] += 1
            name = f"{problem.id}#{seen[problem.id]}"
        found.append(f"{stream}/{name}")
    return found


def requests_of(problems: Sequence[Problem], params: SamplingParams, min_version: int = 0) -> list[list[Request]]:
    """The requests of each problem's group, ``params.samples_per_problem`` of them."""
    return [
        [
            Request(group_id=group_id, sample=sample, problem=problem, params=params, min_version=min_version)
            for sample in range(params.samples_per_problem)
        ]
        for group_id, problem in zip(group_ids(problems, params.stream), problems, strict=True)
    ]


@dataclass(slots=True)
class GroupBuilder:
    """Puts completions together, in whatever order they come.

    Example: ``builder.expect(requests)`` for the requests of one group, then ``builder.add(request, completion)`` for
    each of them: None until the last, which gives the ``Group`` with its completions in the order of ``sample``.
    """

    _open: dict[str, list[Completion | None]] = field(default_factory=dict)
    _left: dict[str, int] = field(default_factory=dict)

    def expect(self, requests: Sequence[Request]) -> None:
        """These requests, of samples 0, 1, 2 …, are one group."""
        group_id = requests[0].group_id
        assert group_id not in self._open, f"group {group_id!r} is under way"
        self._open[group_id] = [None] * len(requests)
        self._left[group_id] = len(requests)

    def add(self, request: Request, completion: Completion) -> Group | None:
        """The finished group, or None."""
        group_id = request.group_id
        completions = self._open[group_id]
        assert completions[request.sample] is None, f"{request.key!r} came twice"
        completions[request.sample] = completion
        self._left[group_id] -= 1
        if self._left[group_id]:
            return None
        del self._open[group_id], self._left[group_id]
        return Group(
            group_id=group_id,
            problem=request.problem,
            completions_G=tuple(one for one in completions if one is not None),
        )


def draw_groups(
    sampler: Sampler, problems: Sequence[Problem], params: SamplingParams, *, done: Container[str] = ()
) -> Iterator[Group]:
    """The group of each problem, in the order of ``problems``, as soon as it and those before it are drawn.

    ``done``: ids of groups (``group_ids``) that are left out, where a stage goes on. Nothing else may be under way in
    ``sampler``. All is asked for at once: give a long list in parts, with a stream each.
    """
    wanted = [requests for requests in requests_of(problems, params) if requests[0].group_id not in done]
    if isinstance(sampler, PoolSampler):
        sampler.position = 0  # the same worker draws the same, whatever was drawn before
    builder = GroupBuilder()
    for requests in wanted:
        builder.expect(requests)
    sampler.ask([request for requests in wanted for request in requests])
    waiting: dict[str, Group] = {}
    for requests in wanted:
        while requests[0].group_id not in waiting:
            for request, completion in sampler.poll(WAIT):
                group = builder.add(request, completion)
                if group is not None:
                    waiting[group.group_id] = group
        yield waiting.pop(requests[0].group_id)
