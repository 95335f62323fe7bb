"""Format, tags, language, length, conciseness, overlong, repetition."""

import pytest

from rlreason.rewards.language import language, words
from rlreason.rewards.shape import conciseness, format_reward, length, overlong, repetition, tags
from rlreason.types import Completion, Problem, Verdict

PROBLEM = Problem(id="p", prompt="", verifier="math", reference="7")


def completion(text: str, tokens: int = 10, *, cut: bool = False, prefill: str = "") -> Completion:
    return Completion(
        prompt_ids=(),
        token_ids=(1,) * tokens,
        sampler_logprobs=None,
        text=text,
        prefill=prefill,
        finish_reason="length" if cut else "stop",
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think><answer>7</answer>", 1),
        (" <think>a</think>\n\n<answer>7</answer>\n", 1),
        ("<think>a < b, {x}</think><answer>7</answer>", 1),
        ("<think>a</think><answer>7</answer> done", 0),
        ("So <think>a</think><answer>7</answer>", 0),
        ("<think>a</think> so <answer>7</answer>", 0),
        ("<think>a</think><answer>7</answer><answer>8</answer>", 0),
        ("<think>a<answer>7</answer></think>", 0),
        ("<think>a<answer>6</answer></think><answer>7</answer>", 0),
        ("<think>a</think><think>b</think><answer>7</answer>", 0),
        ("<think>a</think><answer>7", 0),
        ("<think>a</think><answer> </answer>", 0),
        ("<think> </think><answer>7</answer>", 0),
        ("<answer>7</answer><think>a</think>", 0),
        ("", 0),
        ("</think><answer>7</answer>", 0),
    ],
)
def test_format_tags(text: str, value: float) -> None:
    assert format_reward(PROBLEM, completion(text)) == value


def test_format_counts_the_prefill() -> None:
    assert format_reward(PROBLEM, completion("a</think><answer>7</answer>", prefill="<think>")) == 1
    assert format_reward(PROBLEM, completion("<think>a</think><answer>7</answer>", prefill="<think>")) == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think>So \\boxed{\\frac{1}{2}}.", 1),
        ("<think>\\boxed{1}</think>So \\boxed{2}", 1),
        ("<think>a</think>\\boxed{1} or \\boxed{2}", 0),
        ("<think>a</think>\\boxed{}", 0),
        ("<think>a</think>\\boxed{1", 0),
        ("<think>\\boxed{1}</think> so", 0),
        ("\\boxed{1}", 0),
    ],
)
def test_format_boxed(text: str, value: float) -> None:
    assert format_reward(PROBLEM, completion(text), style="boxed") == value


def test_format_style_is_checked() -> None:
    with pytest.raises(ValueError, match="'tags' or 'boxed'"):
        format_reward(PROBLEM, completion(""), style="xml")  # type: ignore[arg-type]


EN = "First we note that the sum of the two numbers is seven, so it is clear that we have the answer."
DE = "Zuerst sehen wir dass die Summe der zwei Zahlen sieben ist und also auch die Antwort nicht falsch ist."


@pytest.mark.parametrize(
    ("text", "target", "low", "high"),
    [
        (EN, "en", 1, 1),
        (EN + " $x \\in \\mathbb{R}$ \\frac{1}{2}", "en", 1, 1),
        (DE, "de", 1, 1),
        (DE, "en", 0, 0.3),
        (EN, "de", 0, 0.3),
        ("我们首先计算两个数的和", "zh", 1, 1),
        ("我们首先计算两个数的和", "en", 0, 0),
        (EN + "我们首先计算两个数的和所以答案是七", "en", 0.4, 0.8),
        ("Сначала мы складываем числа", "ru", 1, 1),
        ("3+4=7;7-2=5", "en", 1, 1),
        ("", "en", 1, 1),
        ("Wait, seven.", "fr", 1, 1),  # five telling words at least, or Latin letters are taken on trust
    ],
)
def test_language(text: str, target: str, low: float, high: float) -> None:
    assert low <= language(PROBLEM, completion(f"<think>{text}</think>答案 <answer>7</answer>"), target=target) <= high


def test_language_target_is_checked() -> None:
    with pytest.raises(ValueError, match="unknown target 'eng'"):
        language(PROBLEM, completion("a"), target="eng")


def test_words() -> None:
    assert words("It's 42 数学 $x$") == ["it's", "42", "数", "学", "x"]


def test_length_is_the_cosine_of_the_paper() -> None:
    def value(verdict: Verdict, tokens: int) -> float:
        return length(PROBLEM, completion("", tokens), verdict=verdict, max_tokens=100)

    right = [value(Verdict.CORRECT, t) for t in (0, 50, 100, 200)]
    wrong = [value(Verdict.WRONG, t) for t in (0, 50, 100, 200)]
    assert right == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert wrong == pytest.approx([-0.5, -0.25, 0.0, 0.0])


@pytest.mark.parametrize(
    ("tokens", "cut", "value"),
    [(0, False, 0.0), (32, False, 0.0), (40, False, -0.5), (48, False, -1.0), (60, False, -1.0), (3, True, -1.0)],
)
def test_overlong_is_daposeq13(tokens: int, cut: bool, value: float) -> None:
    assert overlong(PROBLEM, completion("", tokens, cut=cut), max_tokens=48, buffer=16) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("", 0.0), ("a b c", 0.0), ("a b c d e f", 0.0), ("go " * 13, -0.9), ("a b c d a b c d", -0.2)],
)
def test_repetition(text: str, value: float) -> None:
    assert repetition(PROBLEM, completion(text)) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("<think>a</think><answer>7</answer>", 1.0),
        ("<think>a</think>7", 0.5),
        ("a", 0.0),
        ("<think><think>a</think><answer>7</answer>", 0.75),  # twice is not once
        ("</think>a<think>", 0.25),  # a closing tag before its opening one
        ("<think>" * 1000, 0.0),
    ],
)
def test_tags_count_once(text: str, share: float) -> None:
    assert tags(PROBLEM, Completion.from_text(text)) == share


def test_conciseness_by_hand() -> None:
    """Lengths 10, 20, 30: slopes 0.5, 0, -0.5; a wrong answer gains nothing by being short."""
    right, wrong = Verdict.CORRECT, Verdict.WRONG

    def of(*rows: tuple[int, Verdict]) -> list[float]:
        completions = [
            Completion(prompt_ids=(1,), token_ids=(2,) * n, sampler_logprobs=None, text="", finish_reason="stop")
            for n, _ in rows
        ]
        return conciseness(PROBLEM, completions, verdicts=[verdict for _, verdict in rows])

    assert of((10, right), (20, right), (30, right)) == [0.5, 0.0, -0.5]
    assert of((10, wrong), (20, right), (30, wrong)) == [0.0, 0.0, -0.5]
    assert of((10, right), (10, wrong)) == [0.0, 0.0]
    assert of((10, Verdict.BROKEN), (30, right)) == [0.0, -0.5]
