"""Which part of a response is its answer."""

import pytest

from rlreason.rewards.math.answer import check


@pytest.mark.parametrize(
    ("response", "gold", "verdict"),
    [
        # boxes
        ("\\boxed{7}", "7", "correct"),
        ("\\fbox{7}", "7", "correct"),
        ("\\boxed 7", "7", "correct"),
        ("\\boxed{\\boxed{7}}", "7", "correct"),
        ("\\boxed{\\frac{1}{\\sqrt{2}}} is it", "\\frac{\\sqrt2}{2}", "correct"),
        ("\\boxed{6} no, \\boxed{7}", "7", "correct"),
        ("\\boxed{7} no, \\boxed{6}", "7", "wrong"),
        ("\\boxed{6} and then \\boxed{7}", "7", "correct"),
        ("\\boxed{6} or \\boxed{7}", "7", "wrong"),
        ("\\boxed{6}, \\boxed{7}", "7", "wrong"),
        ("\\boxed{6} and \\boxed{7}", "6, 7", "correct"),
        ("$x_1 = \\boxed{6}$ and $x_2 = \\boxed{7}$", "6, 7", "correct"),
        ("\\boxed{7} and the check gives \\boxed{7}", "7", "correct"),
        ("\\boxed{7 or 8}", "7", "wrong"),
        ("\\boxed{7, 8}", "7", "wrong"),
        ("\\boxed{}", "7", "unparsed"),
        ("7 \\boxed{ }", "7", "unparsed"),
        ("\\boxed{7} \\boxed{}", "7", "unparsed"),
        ("\\boxed{7", "7", "unparsed"),
        ("\\boxed{6} \\boxed{7", "7", "unparsed"),
        ("\\boxed{25}\\%", "25\\%", "correct"),
        ("\\boxed{25} percent", "\\frac14", "correct"),
        # thoughts
        ("<think>\\boxed{6}</think>\\boxed{7}", "7", "correct"),
        ("<think>\\boxed{7}</think>so \\boxed{6}", "7", "wrong"),
        ("<think>\\boxed{7}</think> I do not know.", "7", "unparsed"),
        ("<think>\\boxed{7}", "7", "unparsed"),
        ("maybe 6</think>\\boxed{7}", "7", "correct"),
        ("<think>a</think>\\boxed{6}<think>\\boxed{7}", "7", "unparsed"),
        # tags
        ("<think>a</think><answer>7</answer>", "7", "correct"),
        ("<answer>\\boxed{7}</answer>", "7", "correct"),
        ("<answer>6</answer><answer>7</answer>", "7", "correct"),
        ("<answer>7", "7", "correct"),  # </answer> was a stop word
        ("<answer>7 is what I", "7", "unparsed"),
        ("<answer>The first step is 7", "7", "unparsed"),
        ("<answer></answer>", "7", "unparsed"),
        ("\\boxed{6} <answer>7</answer>", "7", "correct"),
        # statements
        ("6 + 1 = 7\n#### 7", "7", "correct"),
        ("The answer is 7.", "7", "correct"),
        ("The answer is 6. No: the answer is 7.", "7", "correct"),
        ("The answer is $\\frac{1}{2}$ because 7 is prime.", "0.5", "correct"),
        ("**Answer:** 7", "7", "correct"),
        ("Final Answer: The final answer is $7$. I hope it is correct.", "7", "correct"),
        ("\\boxed{6}. Wait. Final Answer: The final answer is $7$.", "7", "correct"),
        ("答案是7。", "7", "correct"),
        ("Thus $x = 7$.", "7", "correct"),
        ("so 3 + 4 = 7", "7", "correct"),
        ("There are 7 ways to do it.", "7", "correct"),
        ("I cannot solve this.", "7", "unparsed"),
        ("", "7", "unparsed"),
        ("   \n ", "7", "unparsed"),
        ("The answer is the correct answer.", "7", "unparsed"),
        ("There are 7 cases.\nI give up.", "7", "unparsed"),
        ("The answer is not 7", "7", "unparsed"),
        ("It is between 7 and 9.", "7", "unparsed"),
        ("It is 7 or 8.", "7", "wrong"),
        ("__import__('os').system('true') or 7", "7", "unparsed"),
        # another turn
        ("\\boxed{7}<|im_end|>", "7", "correct"),
        ("The answer is 7. <|im_start|>user\nand 8?", "7", "correct"),
        # choices
        ("The correct option is (B).", "B", "correct"),
        ("The answer is B because A is wrong", "B", "correct"),
        ("\\boxed{\\text{(B)}}", "B", "correct"),
        ("\\boxed{B. 12 cm}", "B", "correct"),
        ("I think it's B", "B", "correct"),
        ("A. Because B is not valid", "A", "correct"),
        ("\\boxed{A, B}", "B", "wrong"),
        ("\\boxed{A B C D}", "A", "wrong"),
        ("It is A or B", "B", "unparsed"),
        # words
        ("The answer is Evelyn.", "\\text{Evelyn}", "correct"),
        ("\\boxed{\\text{not }7}", "7", "wrong"),
    ],
)
def test_extraction(response: str, gold: str, verdict: str) -> None:
    assert check(response, gold).verdict == verdict


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("There are 7 ways.", "unparsed"),
        ("Thus $x = 7$.", "unparsed"),
        ("The answer is 7.", "correct"),
        ("\\boxed{7}", "correct"),
    ],
)
def test_marked_only(response: str, verdict: str) -> None:
    assert check(response, "7", marked_only=True).verdict == verdict


def test_marked_only_is_an_option_of_a_reference() -> None:
    assert check("There are 7 ways.", {"answer": "7", "marked_only": True}).verdict == "unparsed"
    assert check("There are 7 ways.", {"answer": "7", "marked_only": False}, marked_only=True).verdict == "correct"
    assert check("The answer is 7.", {"answer": ["7", "8"], "marked_only": True}).verdict == "correct"
    for wrong in (
        {"marked_only": "false"},
        {"marked_only": 1},
        {"units": "yes"},
        {"tolerance": True},
        {"tolerance": -1},
    ):
        result = check("\\boxed{7}", {"answer": "7", **wrong})
        assert (result.verdict, result.score) == ("broken", None)
        assert next(iter(wrong)) in result.detail


def test_the_result_says_what_and_how() -> None:
    result = check("so \\boxed{\\frac12}", "0.5")
    assert (result.extracted, result.detail, result.score) == ("\\frac12", "box", 1.0)
