"""Filling a chat template, which is a program that came with a model: it may loop or eat memory.

A template that does nothing but choose and walk the messages once is filled here. Any other runs in
a worker process with limits of processor time and memory that the kernel keeps, also inside one C
call (`9**9**9`).
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from jinja2 import Environment, TemplateError, nodes

from epistill.errors import EpistillError, first_line
from epistill.tasks.workers import Lost, Workers

LIMIT_S = 2.0  # of processor time; real templates take milliseconds
# A prompt may be so much longer than its messages: tools, dates, a few repetitions.
MOST_TIMES, MOST_BESIDE = 4, 2**20
# Nodes of a template without assignments, calls, filters and arithmetic.
_STEPS = (
    nodes.And, nodes.Compare, nodes.Concat, nodes.Const, nodes.For, nodes.Getattr, nodes.Getitem,
    nodes.If, nodes.Name, nodes.Not, nodes.Operand, nodes.Or, nodes.Output, nodes.TemplateData,
    nodes.Test,
)  # fmt: skip
MOST_STEPS = 100
_lock = threading.Lock()


def fill_template(
    template: Any, variables: Mapping[str, Any], chat: Sequence[Mapping[str, str]]
) -> str:
    """The text of a chat (role and content of each message), ready for the assistant to write.

    Raises:
        EpistillError: The template raised, took too long or too much memory, or wrote a text out
            of all proportion.
    """
    asked = {"chat_template": template, "conversations": [list(chat)], **variables}
    if isinstance(template, str) and only_walks(template):
        reply: Any = fill(asked)
    else:
        with _lock:
            (reply,) = _worker(os.getpid()).map([asked])
    if isinstance(reply, Lost):
        raise EpistillError(f"{reply.reason}; expected a template that renders them at once")
    if reply["error"] is not None:
        raise EpistillError(reply["error"])
    text, size = reply["text"], sum(len(message["content"]) for message in chat)
    if len(text) > MOST_TIMES * size + MOST_BESIDE:
        raise EpistillError(f"it made {len(text):,} characters of messages of {size:,}")
    return text


@lru_cache
def only_walks(template: str) -> bool:
    """Whether it ends soon by its form: it chooses, and walks the messages without walks inside."""
    try:
        steps = list(Environment().parse(template).find_all(nodes.Node))
    except (TemplateError, RecursionError):
        return False
    over_messages = (
        isinstance(step.iter, nodes.Name)
        and step.iter.name == "messages"
        and step.find(nodes.For) is None
        for step in steps
        if isinstance(step, nodes.For)
    )
    simple = len(steps) <= MOST_STEPS and all(isinstance(step, _STEPS) for step in steps)
    return simple and all(over_messages)


def fill(asked: dict[str, Any]) -> dict[str, str | None]:
    """Text or error; in a worker, or here."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        # The annotation says str; what is returned are the texts and what the assistant wrote.
        texts, _ = cast(Any, render_jinja_template(**asked, add_generation_prompt=True))
    except MemoryError:
        return {"text": None, "error": "no memory is left"}
    except Exception as error:  # noqa: BLE001 - a template is a program: it may raise anything
        return {"text": None, "error": first_line(error)[:300]}
    return {"text": texts[0], "error": None}


def warm_up() -> None:
    """Import in the worker what it needs, before its limits count."""
    os.environ["USE_TORCH"] = "0"
    import transformers.utils.chat_template_utils  # noqa: F401


@lru_cache(maxsize=1)
def _worker(process: int) -> Workers:
    """One for each process: a fork has no share in its parent's."""
    worker = Workers(f"{__name__}:{fill.__name__}", limit_s=LIMIT_S, workers=1)
    atexit.register(worker.close)
    return worker
