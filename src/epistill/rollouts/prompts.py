"""THE ONLY place that applies a chat template, and the only one that splits thinking from answer.

Enters: messages and a tokenizer, or a response's text. Leaves: prompt text and ids, and whether
the template already opened `<think>`; a response as (thinking, answer). It decides nothing about
contexts: `teacher.context` writes the messages, this module renders them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from epistill.errors import EpistillError
from epistill.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """What the model reads before its response.

    Attributes:
        text: The rendered template.
        ids: Its token ids; the template writes every special token, none is added.
        opens_thinking: The template itself ends inside an open `<think>`, so a response has no
            opening tag (DeepSeek-R1-Distill and the lab model do this).
    """

    text: str
    ids: tuple[int, ...]
    opens_thinking: bool

    @property
    def sha256(self) -> str:
        """Hash of the text, to tell two prompts apart in a log."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    thinking: bool | None = None,
) -> RenderedPrompt:
    """Render a chat up to the point where the assistant begins to write.

    Args:
        tokenizer: With a chat template.
        messages: The chat.
        thinking: Passed to the template as `enable_thinking`; None leaves the template's default.

    Raises:
        EpistillError: The tokenizer has no chat template, or the template refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise EpistillError(
            f"tokenizer {tokenizer.name_or_path!r} has no chat template; expected one in "
            "tokenizer_config.json or chat_template.jinja; use an instruction-tuned model or add it"
        )
    options: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    chat = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True, **options
        )
    except Exception as error:  # a template is a program: it may raise anything
        raise EpistillError(
            f"the chat template of {tokenizer.name_or_path!r} refused the messages "
            f"(roles {[m.role for m in messages]}): {error}"
        ) from error
    assert isinstance(text, str)
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return RenderedPrompt(text, ids, opens_thinking(text))


def opens_thinking(prompt_text: str) -> bool:
    """Whether a rendered prompt ends inside an open `<think>` block of the assistant's turn."""
    return prompt_text.rfind(OPEN) > prompt_text.rfind(CLOSE) and prompt_text.rstrip().endswith(
        OPEN
    )


def thinking_mode(prompt_text: str) -> Literal["open", "closed", "absent"]:
    """How a rendered prompt leaves thinking: inside the tag, after an emptied pair, or untouched.

    Two prompts of different modes ask for different kinds of response: comparing them compares the
    modes, not the contexts.
    """
    if opens_thinking(prompt_text):
        return "open"
    return "closed" if prompt_text.rstrip().endswith(CLOSE) else "absent"


@dataclass(frozen=True, slots=True)
class SplitResponse:
    """A response cut at its thinking tags.

    Attributes:
        thinking: Text between the tags, without them; "" where there was none; all of a text whose
            thinking was never closed.
        answer: Text before the first and after the last tag; "" where thinking was never closed.
        form: "paired" (both tags), "opened" (the prompt opened it), "unclosed" (cut inside
            thinking), "absent" (no thinking at all).
    """

    thinking: str
    answer: str
    form: Literal["paired", "opened", "unclosed", "absent"]


def split_thinking(text: str, *, opened_in_prompt: bool = False) -> SplitResponse:
    r"""Split a response into thinking and answer, in all four cases.

    A closing tag without an opening one means the prompt opened it, whether or not the caller
    knew; so the s\think context never silently becomes c=s (the paired-regex bug of TRL and of
    the paper's code).

    Args:
        text: The response, tags kept.
        opened_in_prompt: The prompt ended inside `<think>`; only then does a text without any tag
            count as unclosed thinking.

    Example:
        >>> split_thinking("so 18 </think> answer 18").form
        'opened'
        >>> split_thinking("answer 18").thinking
        ''
    """
    opening, closing = text.find(OPEN), text.rfind(CLOSE)
    if text.find(OPEN, closing + 1) >= 0:  # opened, perhaps again, and never closed after that
        return SplitResponse(text.replace(OPEN, "").replace(CLOSE, ""), "", "unclosed")
    if closing >= 0:
        after = text[closing + len(CLOSE) :].strip()
        if 0 <= opening < closing:
            prose = text[:opening].strip()
            answer = f"{prose}\n{after}" if prose and after else prose or after
            return SplitResponse(text[opening + len(OPEN) : closing], answer, "paired")
        return SplitResponse(text[:closing], after, "opened")
    if opened_in_prompt:
        return SplitResponse(text, "", "unclosed")
    return SplitResponse("", text.strip(), "absent")
