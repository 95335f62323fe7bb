"""Prompts, tags and stop tokens: the only file of the package that knows how the tags are spelt.

A prompt is rendered by the tokenizer's own chat template. A training row is the prompt's token ids followed by the
ids of the raw assistant text. The template is never applied to an assistant turn: DeepSeek's and others cut
``<think>…</think>`` out of past turns, which would train the model on answers without thoughts. Prompt and completion
are encoded apart, as in sampling, so that no token spans the boundary in training that could not be sampled.

Control tokens and tags written out in a problem's text (``<|im_end|>`` in a forum post, say) are encoded as plain
characters, never as control tokens, whatever the tokenizer would do by default. Only the tags may be control tokens in
the assistant's text; the recipe's system prompt may hold any. The one limit: a control token of a single character
can't be told from that character.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, Protocol

from jinja2 import TemplateError

from rlreason.errors import UsageError
from rlreason.types import Problem

__all__ = [
    "ANSWER_CLOSE",
    "ANSWER_OPEN",
    "INSTRUCTIONS",
    "PLAIN_CHAT_TEMPLATE",
    "TAGS",
    "THINK_CLOSE",
    "THINK_OPEN",
    "AnswerStyle",
    "PromptFormat",
    "RenderedPrompt",
    "SupervisedRow",
    "Tokenizer",
    "end_of_turn_id",
    "stop_token_ids",
    "thought_in",
    "wrap",
]

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
ANSWER_OPEN = "<answer>"
ANSWER_CLOSE = "</answer>"
#: Every tag, for a tokenizer that gives each one a token of its own.
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)

AnswerStyle = Literal["tags", "boxed"]

#: A system prompt that asks for each style, for models that don't have it yet.
INSTRUCTIONS: Mapping[AnswerStyle, str] = {
    "tags": f"Think inside {THINK_OPEN}{THINK_CLOSE}, then write only the final answer inside "
    f"{ANSWER_OPEN}{ANSWER_CLOSE}.",
    "boxed": f"Think inside {THINK_OPEN}{THINK_CLOSE}, then write the final answer inside \\boxed{{}}.",
}

#: Chat template for models trained from nothing: the text of the turns and nothing else, no role names to learn.
PLAIN_CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ message['content'] }}"
    "{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}{%- endfor -%}"
)

_PREFILL = re.compile(rf"{THINK_OPEN}\s*(?:{THINK_CLOSE}\s*)?\Z")
_PROBE = "reply"


class Tokenizer(Protocol):
    """What this file asks of a tokenizer; every ``transformers`` tokenizer with a chat template has it."""

    @property
    def eos_token_id(self) -> int | None: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Token id -> an object with ``content`` (str) and ``special`` (bool)."""
        ...

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, str]], *, add_generation_prompt: bool, tokenize: bool, **kwargs: Any
    ) -> Any: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPrompt:
    """A prompt as the model gets it: its text, its token ids, and the assistant text that it already holds.

    Example: ``RenderedPrompt(text="<|user|>2+2=<|assistant|><think>\\n", ids=(5, 9, 6), prefill="<think>\\n")``.
    """

    text: str
    ids: tuple[int, ...]
    prefill: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedRow:
    """One demonstration: ``loss_mask`` is 0 on the prompt and 1 on the completion with its end-of-turn token.

    Example: ``SupervisedRow(token_ids=(1, 9, 11, 2), loss_mask=(0, 0, 1, 1))``.
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]


def wrap(thought: str, answer: str, style: AnswerStyle) -> str:
    """The whole assistant turn.

    ``tags`` has no character more than needed, for small models trained from nothing; ``boxed`` has the line breaks
    that R1 and Qwen3 models write.
    """
    if style == "tags":
        return f"{THINK_OPEN}{thought}{THINK_CLOSE}{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"
    return f"{THINK_OPEN}\n{thought}\n{THINK_CLOSE}\n\n\\boxed{{{answer}}}"


def thought_in(text: str) -> str:
    """What stands between the first ``<think>`` and the next ``</think>``; all of ``text`` where it has no tags."""
    before, close, _ = text.partition(THINK_CLOSE)
    inside = before.partition(THINK_OPEN)[2] if THINK_OPEN in before else before
    return inside.strip() if close or THINK_OPEN in text else text


def end_of_turn_id(tokenizer: Tokenizer) -> int:
    """The token that ends an assistant turn: the one that the chat template writes, otherwise eos.

    Raises UsageError where there is neither.
    """
    turns = ({"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE})
    ending = _apply(tokenizer, turns, generate=False, options={}).rpartition(_PROBE)[2]
    controls = _control_ids_but_tags(tokenizer)
    found = _control_pattern(controls).search(ending)
    if found:
        return controls[found.group()]
    if tokenizer.eos_token_id is None:
        raise UsageError("the tokenizer has no eos token and its chat template ends no turn: a sample would never stop")
    return tokenizer.eos_token_id


def stop_token_ids(tokenizer: Tokenizer, others: Sequence[int] = ()) -> tuple[int, ...]:
    """Tokens that end a sample: the end of turn first, then eos and ``others``, each once.

    ``others``: those that the model's generation config names, such as GLM's ``<|user|>``, which its chat template
    writes only before the next turn, or Llama 3's ``<|eom_id|>``.
    """
    eos = tokenizer.eos_token_id
    return tuple(dict.fromkeys((end_of_turn_id(tokenizer), *(() if eos is None else (eos,)), *others)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFormat:
    """How problems become prompts and demonstrations. Example: ``PromptFormat(system=None, style="tags")``.

    ``system`` is put before a problem that brings no system message of its own.
    """

    system: str | None = None
    style: AnswerStyle = "tags"
    #: Arguments of the chat template beside the turns, such as ``{"enable_thinking": False}``.
    template: Mapping[str, object] = field(default_factory=dict)
    #: What the question is put into, with {prompt} where it stands; None: the question alone.
    ask: str | None = None
    #: Questions with the answers that are shown before it, as turns of the chat (few-shot).
    shots: tuple[tuple[str, str], ...] = ()
    #: Of the problems of a named set instead of the above, by its name.
    sets: Mapping[str, "PromptFormat"] = field(default_factory=dict)
    #: What templates take for today (Llama 3, SmolLM3, gpt-oss write it into the prompt): the day when the run began,
    #: so that a prompt is the same on the next day. None: the real day.
    day: date | None = None

    def template_options(self, problem: Problem) -> dict[str, object]:
        """What the chat template of ``problem`` is given beside the turns."""
        options = dict(self.of(problem).template)
        day = self.day
        return options if day is None else {"strftime_now": day.strftime, **options}

    def of(self, problem: Problem) -> "PromptFormat":
        """The format of ``problem``: that of its set."""
        return self.sets.get(problem.data_set, self)

    def turns(self, problem: Problem) -> list[tuple[str, str]]:
        """(role, text) of every turn of the prompt, the system prompt first where there is one."""
        form = self.of(problem)
        asked = [(str(one.role), one.content) for one in problem.messages] or [("user", problem.prompt)]
        asked[-1] = (asked[-1][0], form.asked(asked[-1][1]))
        shown = [
            turn for question, answer in form.shots for turn in (("user", form.asked(question)), ("assistant", answer))
        ]
        if asked[0][0] == "system":
            return [asked[0], *shown, *asked[1:]]
        return [*([("system", form.system)] if form.system else []), *shown, *asked]

    def asked(self, question: str) -> str:
        """The question as it is put to the model."""
        return question if self.ask is None else self.ask.replace("{prompt}", question)

    def render(self, problem: Problem, tokenizer: Tokenizer) -> RenderedPrompt:
        """The prompt of ``problem`` by the tokenizer's chat template, ready to be continued by the model.

        Raises UsageError where the tokenizer has no chat template or the template refuses the turns.
        """
        options = self.template_options(problem)
        pattern = _control_pattern(_control_ids(tokenizer))
        hidden: list[str] = []
        own = not (problem.messages and problem.messages[0].role == "system")
        safe = [
            # A recipe's own system prompt: control tokens in it are meant.
            {"role": role, "content": text if role == "system" and own else _hide(text, pattern, hidden)}
            for role, text in self.turns(problem)
        ]
        text = _apply(tokenizer, safe, generate=True, options=options)
        prefill = ""
        found = _PREFILL.search(text)
        if found:
            # A question that itself ends in the tag, under a template that adds nothing, prefills nothing.
            bare = _apply(tokenizer, safe, generate=False, options=options)
            if not text.startswith(bare) or len(bare) <= found.start():
                prefill = found.group()
        return RenderedPrompt(text=_show(text, hidden), ids=_encode(tokenizer, text, hidden), prefill=prefill)

    def completion_ids(self, problem: Problem, tokenizer: Tokenizer, response: str | None = None) -> tuple[int, ...]:
        """Token ids that a perfect sample would have: the assistant turn less the prefill, then the end of turn.

        ``response`` is a whole assistant turn (``Completion.response``); by default the problem's demonstration.
        Raises UsageError where there is neither, or the template prefills a thought that is already closed.
        """
        return self._completion_ids(problem, tokenizer, response, self.render(problem, tokenizer).prefill)

    def supervised(
        self, problem: Problem, tokenizer: Tokenizer, response: str | None = None, *, ended: bool = True
    ) -> SupervisedRow:
        """The training row of ``completion_ids`` after its prompt, with the loss mask. Raises as that does.

        ``ended``: the response ended by itself; one that was cut off is not followed by an end that nobody drew.
        """
        prompt = self.render(problem, tokenizer)
        completion = self._completion_ids(problem, tokenizer, response, prompt.prefill)
        if not ended:
            completion = completion[:-1]
        return SupervisedRow(
            token_ids=prompt.ids + completion, loss_mask=(0,) * len(prompt.ids) + (1,) * len(completion)
        )

    def _completion_ids(
        self, problem: Problem, tokenizer: Tokenizer, response: str | None, prefill: str
    ) -> tuple[int, ...]:
        if response is None:
            response = self._demonstration(problem, prefill)
        if THINK_CLOSE in prefill and (THINK_OPEN in response or THINK_CLOSE in response):
            raise UsageError(
                "the chat template prefills an empty thought (thinking is off), so a demonstration with a thought "
                "can't follow it; use the template's thinking mode"
            )
        # The tags are the only control tokens that the assistant's text may hold.
        pattern = _control_pattern(_control_ids_but_tags(tokenizer))
        hidden: list[str] = []
        safe = _hide(_after_prefill(response, prefill), pattern, hidden)
        return (*_encode(tokenizer, safe, hidden), end_of_turn_id(tokenizer))

    def _demonstration(self, problem: Problem, prefill: str) -> str:
        """The assistant's turn that ``problem`` shows: as it is written where the data has it whole."""
        if problem.answer is None:
            raise UsageError(f"problem {problem.id!r} has no demonstration: it needs a solution and an answer")
        if problem.thought is not None:
            return wrap(problem.thought, problem.answer, self.of(problem).style)
        if THINK_OPEN in prefill and THINK_CLOSE not in prefill and THINK_CLOSE not in problem.answer:
            raise UsageError(
                f"problem {problem.id!r}: the chat template begins a thought, and its demonstration ends none: give "
                f"one with {THINK_CLOSE}, or turn thinking off by data.chat_template_kwargs"
            )
        return problem.answer


def _after_prefill(response: str, prefill: str) -> str:
    """``response`` less the prefill. Their whitespace after the tag may differ: the prefill's is what the model saw."""
    if response.startswith(prefill):
        return response[len(prefill) :]
    rest = response.removeprefix(prefill.rstrip())
    return rest.lstrip() if prefill[-1].isspace() else rest


def _apply(
    tokenizer: Tokenizer, turns: Sequence[Mapping[str, str]], *, generate: bool, options: Mapping[str, object]
) -> str:
    try:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=generate, tokenize=False, **options)
    except (ValueError, TemplateError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"the tokenizer's chat template can't render the prompt: {reason}") from error
    return str(text)


def _control_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Text -> id of the special tokens, and of the tags, which some tokenizers (Qwen3) don't count as special."""
    added = tokenizer.added_tokens_decoder.items()
    return {token.content: id_ for id_, token in added if token.special or token.content in TAGS}


def _control_ids_but_tags(tokenizer: Tokenizer) -> dict[str, int]:
    return {text: id_ for text, id_ in _control_ids(tokenizer).items() if text not in TAGS}


def _control_pattern(controls: Mapping[str, int]) -> re.Pattern[str]:
    """Matches any control token, longest first; matches nothing where there are none."""
    longest_first = sorted((text for text in controls if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


# Control tokens in user text are hidden from the template and the tokenizer behind private-use characters, one pair
# around an index, and encoded character by character, which no tokenizer joins into a control token.
_MARK = "\uf8ff"
_MARKED = re.compile(f"{_MARK}([0-9]+){_MARK}")


def _hide(text: str, pattern: re.Pattern[str], hidden: list[str]) -> str:
    """``text`` with each control token, and each mark, replaced by a mark around its index in ``hidden``."""

    def mark(found: re.Match[str]) -> str:
        hidden.append(found.group())
        return f"{_MARK}{len(hidden) - 1}{_MARK}"

    either = re.compile(f"{_MARK}|{pattern.pattern}") if _MARK in text else pattern
    return either.sub(mark, text)


def _show(text: str, hidden: Sequence[str]) -> str:
    return _MARKED.sub(lambda found: hidden[int(found.group(1))], text) if hidden else text


def _encode(tokenizer: Tokenizer, text: str, hidden: Sequence[str]) -> tuple[int, ...]:
    if not hidden:
        return tuple(tokenizer.encode(text, add_special_tokens=False))
    ids: list[int] = []
    for position, piece in enumerate(_MARKED.split(text)):
        # Odd pieces are the indices that the pattern captured.
        for part in hidden[int(piece)] if position % 2 else [piece] if piece else []:
            ids.extend(tokenizer.encode(part, add_special_tokens=False))
    return tuple(ids)
