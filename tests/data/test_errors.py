from rlreason.errors import UsageError, nearest, suggest


def test_nearest_names_the_likely_word() -> None:
    assert nearest("step", ["steps", "seed"]) == "; did you mean 'steps'?"
    assert nearest("LR", ["lr", "rank"]) == "; did you mean 'lr'?"
    assert nearest("zzz", ["steps", "seed"]) == ""
    assert nearest("x", []) == ""


def test_usage_error_is_a_value_error() -> None:
    assert issubclass(UsageError, ValueError)


def test_suggest_lists_all_that_is_allowed() -> None:
    assert suggest("step", ["steps", "seed"]) == "did you mean 'steps'? allowed: seed, steps"
    assert suggest("zzz", ["steps", "seed"]) == "allowed: seed, steps"
    assert suggest("zzz", []) == "allowed: none"
