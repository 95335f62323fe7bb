"""A reward in a package of its own."""

from rlreason.rewards.registry import reward


@reward("brevity", seconds=2)
def brevity(problem, completion, *, words=50):
    """1 for an empty response, 0 from ``words`` words on."""
    return max(0.0, 1.0 - len(completion.response.split()) / words)
