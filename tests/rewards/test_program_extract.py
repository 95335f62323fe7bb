"""Extraction of programs: each row is a response as models write them and the program it proposes."""

import pytest

from rlreason.rewards.programs.extract import blocks, extract_program

F = "def f(x):\n    return x\n"
G = "def g(x):\n    return -x\n"

CASES = {
    "tagged": (f"Here:\n```python\n{F}```\nDone.", F),
    "short tag": (f"```py\n{F}```", F),
    "python3": (f"```python3\n{F}```", F),
    "capital tag": (f"```Python\n{F}```", F),
    "braces": (f"```{{.python}}\n{F}```", F),
    "attributes after the tag": (f'```python title="a.py"\n{F}```', F),
    "no tag": (f"```\n{F}```", F),
    "tildes": (f"~~~python\n{F}~~~", F),
    "CRLF": ("```python\r\nx = 1\r\ny = 2\r\n```\r\n", "x = 1\ny = 2\n"),
    "last of several": (f"```python\n{G}```\nBetter:\n```python\n{F}```", F),
    "other languages are skipped": (f"```python\n{F}```\n```bash\npython a.py\n```\n```cpp\nint x;\n```", F),
    "sample output after the program": (f"```python\n{F}```\nOutput:\n```\n5\n```", F),
    "only another language": ("```cpp\nint main() {}\n```", None),
    "a transcript is no program": ("```pycon\n>>> 1\n```", None),
    "after the thought": (f"<think>\n```python\n{G}```\n</think>\n```python\n{F}```", F),
    "only in the thought": (f"<think>\n```python\n{G}```\n</think>\nNo idea.", None),
    "thought closed twice": (f"a</think>```python\n{G}```</think>\n```python\n{F}```", F),
    "thought never closed": (f"<think>\n```python\n{G}```\n", None),
    "thought reopened": (f"</think>\n```python\n{F}```\n<think>no", None),
    "no prefix of the thought": (f"hm</think>\n```python\n{F}```", F),
    "tag inside a program": ("```python\nprint('<think>')\n```", "print('<think>')\n"),
    "answer tag inside a program": ("```python\nprint('<answer>1</answer>')\n```", "print('<answer>1</answer>')\n"),
    "cut off": (f"```python\n{F}", F),
    "cut off after another": (f"```python\n{G}```\nor\n```python\n{F}", F),
    "close forgotten": (f"```python\n{G}\nBetter:\n```python\n{F}```", F),
    "close on the last line": ("```python\nx = 1```\nSo.\n```\n5\n```", "x = 1\n"),
    "cut off inside an answer": (f"<answer>\n```python\n{F}\n</answer>", F),
    "answer around a block": (f"```python\n{G}```\n<answer>\n```python\n{F}```\n</answer>", F),
    "answer on the line of the fence": (f"<answer>```python\n{F}```</answer>", F),
    "bare answer": (f"</think><answer>{F}</answer>", F),
    "bare answer, never closed": (f"</think><answer>{F}", F),
    "bare answer after a draft": (f"```python\n{G}```\n<answer>\n{F}</answer>", F),
    "last answer": (f"<answer>{G}</answer> no: <answer>{F}</answer>", F),
    "block after the answer": (f"<answer>see below</answer>\n```python\n{F}```", F),
    "empty answer": (f"```python\n{G}```\n<answer></answer>", None),
    "other language in the answer": ("<answer>\n```cpp\nint x;\n```\n</answer>", None),
    "end token after the fence": (f"```python\n{F}```<|im_end|>", F),
    "end token after a cut": (f"```python\n{F}\n<|im_end|>", F),
    "in a list item": ("1. So:\n   ```python\n   def f(x):\n       return x\n   ```", F),
    "fence after a list marker": ("- ```python\n  def f(x):\n      return x\n  ```", F),
    "deep list marker": ("10.  ```python\n     def f(x):\n         return x\n     ```", F),
    "all lines indented": ("```python\n    def f(x):\n        return x\n```", F),
    "fence after a sentence": (f"The program is ```python\n{F}```", F),
    "inline code is no fence": (f"```python\n{F}```\nCall ```f(1)``` or ``` f(2) ```.", F),
    "four backticks": (f"````python\nx = '''\n```\n'''\n{F}````", f"x = '''\n```\n'''\n{F}"),
    "fences in a docstring": (
        '```python\ndef f(x):\n    """\n    ```python\n    f(1)\n    ```\n    """\n    return x\n```',
        'def f(x):\n    """\n    ```python\n    f(1)\n    ```\n    """\n    return x\n',
    ),
    "fence in a string": ('```python\nx = "```"\ny = 1\n```', 'x = "```"\ny = 1\n'),
    "blank lines around": ("```python\n\n\nx = 1\n\n```", "x = 1\n"),
    "empty block": ("```python\nx = 1\n```\n```python\n```", None),
    "blank block": ("```python\n  \n```", None),
    "prose": ("The answer is 5.", None),
    "empty": ("", None),
    "bare program": (F, None),
    "fence alone": ("```", None),
    "indentation by tabs": ("```python\nif 1:\n\tx = 1\n```", "if 1:\n\tx = 1\n"),
    "null byte and surrogate": ("```python\nx = '\0\ud800'\n```", "x = '\0\ud800'\n"),
}

WHOLE = {
    "bare program": (F, F),
    "after the thought": (f"<think>hm</think>\n{F}", F),
    "a block still counts": (f"So:\n```python\n{F}```\n", F),
    "answer": (f"<answer>{F}</answer>", F),
    "other language": ("```cpp\nint x;\n```", None),
    "fences in a docstring": (
        'def f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return x\n',
        'def f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return x\n',
    ),
    "thought never closed": (f"<think>{F}", None),
    "blank": (" \n\n", None),
}


@pytest.mark.parametrize(("response", "program"), CASES.values(), ids=CASES.keys())
def test_extract(response: str, program: str | None) -> None:
    assert extract_program(response) == program


@pytest.mark.parametrize(("response", "program"), WHOLE.values(), ids=WHOLE.keys())
def test_whole_text(response: str, program: str | None) -> None:
    assert extract_program(response, whole_text=True) == program


def test_another_language() -> None:
    response = "```python\nx = 1\n```\n```cpp\nint x;\n```\n```rust\nfn f() {}\n```"
    assert extract_program(response, language="cpp") == "int x;\n"
    assert extract_program(response, language="rust") == "fn f() {}\n"
    assert extract_program(response, language="go") is None


def test_positions_cover_the_fences() -> None:
    text = "a ```python\nx = 1\n```\nb\n~~~\ny\n~~~ \nc"
    assert [text[b.start : b.end] for b in blocks(text)] == ["```python\nx = 1\n```", "~~~\ny\n~~~"]


#: A million characters each, with what must come out: a quadratic scan would not end within the test's life.
HOSTILE = {
    "backticks": ("`" * 1_000_000, None),
    "fence lines": ("```\n" * 250_000, None),
    "tagged fences": ("```python\n" * 100_000, None),
    "spaces": ("```python\n" + " " * 1_000_000, None),
    "deep indentation": ("```python\n" + " " * 1000 + ("x\n" + " " * 1000) * 1000, "x\n" * 1000),
    "answers": ("<answer>" * 125_000, None),
    "thoughts": ("<think></think>" * 65_000, None),
    "inline": ("```x``` " * 125_000, None),
    "blank lines": ("```python\n" + "\n" * 1_000_000 + "x", "x\n"),
}


@pytest.mark.parametrize(("text", "program"), HOSTILE.values(), ids=HOSTILE.keys())
def test_long_and_hostile(text: str, program: str | None) -> None:
    assert extract_program(text) == program
