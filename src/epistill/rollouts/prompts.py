"""THE ONLY place that applies a chat template. `teacher.context` writes the messages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epistill.errors import EpistillError, first_line
from epistill.records import Message
from epistill.rollouts.chat_template import fill_template
from epistill.thinking import opens_thinking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        tokenizer, messages: One with a chat template, and the chat.
        thinking: Passed to the template as `enable_thinking`; None leaves the template's default.

    Raises:
        EpistillError: The tokenizer has no chat template, or the template refuses the messages,
            leaves out the last one's content, takes too long or too much memory.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise EpistillError(
            f"tokenizer {tokenizer.name_or_path!r} has no chat template; expected one in "
            "tokenizer_config.json or chat_template.jinja; use an instruction-tuned model or add it"
        )
    variables = dict(tokenizer.special_tokens_map)
    variables |= {} if thinking is None else {"enable_thinking": thinking}
    chat = [{"role": message.role, "content": message.content} for message in messages]
    try:
        template = tokenizer.get_chat_template()
        text = fill_template(template, variables, chat)
        # A misspelt name is nothing in Jinja: every problem would be asked with the same prompt.
        if chat[-1]["content"].strip() not in text:
            other = [*chat[:-1], {**chat[-1], "content": "another"}]
            if fill_template(template, variables, other) == text:
                raise EpistillError("the prompt is the same whatever the last of them says")
    except ValueError as error:
        raise EpistillError(
            f"the chat template of {tokenizer.name_or_path!r} refused the messages "
            f"(roles {[m.role for m in messages]}): {first_line(error)}"
        ) from error
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise EpistillError(
            f"the chat template of {tokenizer.name_or_path!r} makes an empty prompt of messages "
            f"(roles {[m.role for m in messages]}); expected at least one token"
        )
    return RenderedPrompt(text, ids, opens_thinking(text))
