"""The same trace gives the same counts whoever saved it; how it ended is known or said."""

from __future__ import annotations

import pytest

from epistill.thinking import split_thinking
from epistill.traces.fields import cut_of, stop_of, traces_of
from epistill.traces.measure import measure_files
from epistill.traces.measure_summary import summarise_measured, warnings_of
from epistill.traces.options import Options

HMM, SO = "Hmm, wait, maybe 11.", "So 12"


def message(**fields):
    return {"choices": [{"message": {"role": "assistant", **fields}, "finish_reason": "stop"}]}


SAVED = {
    "inline": {"response": f"<think>{HMM}</think>{SO}"},
    "reasoning_content": message(content=SO, reasoning_content=HMM),
    "reasoning": message(content=SO, reasoning=HMM),
    "thinking": message(content=SO, thinking=HMM),
    "details": message(content=SO, reasoning_details=[{"type": "reasoning.text", "text": HMM}]),
    "blocks": message(content=SO, thinking_blocks=[{"type": "thinking", "thinking": HMM}]),
    "said twice": message(content=f"<think>{HMM}</think>{SO}", reasoning_content=HMM),
    "parts": {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": [
        {"type": "thinking", "thinking": HMM}, {"type": "text", "text": SO}]}]},
    "parts of parts": message(content=[{"type": "thinking", "thinking": [{"text": HMM}]},
                                       {"type": "text", "text": SO}]),
    "beside": {"response": SO, "reasoning_content": HMM},
    "AI SDK": {"text": SO, "reasoningText": HMM},
    "LangChain": {"messages": [
        {"type": "human", "content": "What is it?"},
        {"type": "ai", "content": SO, "additional_kwargs": {"reasoning_content": HMM}}]},
    "LangChain's dictionaries": {"messages": [
        {"type": "human", "data": {"type": "human", "content": "What is it?"}},
        {"type": "ai", "data": {"type": "ai", "content": [
            {"type": "reasoning", "reasoning": HMM}, {"type": "text", "text": SO}]}}]},
    "Pydantic AI": {"messages": [
        {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "What is it?"}]},
        {"kind": "response", "parts": [{"part_kind": "thinking", "content": HMM},
                                       {"part_kind": "text", "content": SO}]}]},
    "beside, listed": {"responses": [SO], "reasoning_content": [HMM]},
    "Responses": {"output": [{"type": "reasoning", "summary": [], "content": [{"text": HMM}]},
                             {"type": "message", "role": "assistant",
                              "content": [{"type": "output_text", "text": SO}]}]},
    "a tool between": {"messages": [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "reasoning_content": HMM, "tool_calls": [{}]},
        {"role": "tool", "content": "12"}, {"role": "assistant", "content": SO}]},
}  # fmt: skip


@pytest.mark.parametrize("name", SAVED)
def test_reasoning_is_thinking_wherever_it_stands(name):
    ((trace,), _) = traces_of(SAVED[name], 1)
    found = split_thinking(trace.text)
    assert (found.thinking.strip(), found.answer, found.form) == (HMM, SO, "paired")


CUT = {
    "inline": {"text": f"<think>{HMM}", "finish_reason": "length"},
    "apart": message(content=None, reasoning_content=HMM)["choices"][0]
    | {"finish_reason": "length"},
    "parts": {"message": {"role": "assistant", "content": [{"type": "thinking", "thinking": HMM}]},
              "finish_reason": "length"},
}  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_thinking_that_was_cut_is_unclosed(name):
    ((trace,), _) = traces_of({"choices": [CUT[name]]}, 1)
    assert (split_thinking(trace.text).form, cut_of(trace)[0]) == ("unclosed", True)
    assert split_thinking(trace.text).thinking == HMM


def test_a_server_that_ends_after_thinking_closed_it():
    ((trace,), _) = traces_of(message(content=None, reasoning_content=HMM), 1)
    found = split_thinking(trace.text)
    assert (found.form, found.answer) == ("paired", "")


def test_settings_under_the_name_of_reasoning_are_no_text():
    ((trace,), _) = traces_of(
        {"response": SO, "reasoning": {"effort": "high"}, "thinking": True}, 1
    )
    assert trace.text == SO


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"finish_reason": "eos_token"}, "ended"),
        ({"finishReason": "STOP"}, "ended"),
        ({"stop_reason": "tool_use"}, "ended"),
        ({"finish_reason": "FinishReason.MAX_TOKENS"}, "cut"),
        ({"finish_reason": None, "native_finish_reason": "maxTokens"}, "cut"),
        (
            {"stop_type": "limit", "truncated": False},
            "cut",
        ),  # llama.cpp: `truncated` is of its context
        ({"stopped_eos": False, "stopped_limit": True, "truncated": False}, "cut"),
        ({"stop_reason": "<|im_end|>"}, "ended"),
        ({"stop_reason": "model_context_window_exceeded"}, "cut"),
        ({"finishReason": "MAX_TOKENS"}, "cut"),
        ({"finish_reason": "REASON_MAX_LEN"}, "cut"),  # xAI's SDK
        ({"finish_reason": "REASON_STOP"}, "ended"),
        ({"finish_reason": "FINISHED_LENGTH_CAPPED"}, "cut"),  # vLLM's status of a request
        ({"finish_reason": "finished"}, "ended"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "cut"),
        ({"status": "completed", "incomplete_details": None}, "ended"),
        ({"status": "wrong"}, None),
        ({"finish_reason": "abort"}, "interrupted"),
        ({"finish_reason": "content_filter"}, "interrupted"),
        ({"finish_reason": "frobnicated"}, "frobnicated"),
        ({"finish_reason": None}, None),
    ],
)
def test_stop_words(record, kind):
    ((trace,), _) = traces_of({"response": SO, **record}, 1)
    assert stop_of(trace)[0] == kind
    assert cut_of(trace)[0] is {"ended": False, "cut": True, "interrupted": True}.get(str(kind))


def said_of(path):
    options = Options()
    return summarise_measured(measure_files([path], options), options)["files"][0]


def test_what_is_odd_is_said_once_with_a_count(write):
    odd = [
        {"response": SO, "finish_reason": "frobnicated"},
        {"response": SO, "finish_reason": "frobnicated"},
        {"response": SO, "finish_reason": "abort"},
        {"response": f"<ponder>{HMM}</ponder>{SO}", "finish_reason": "stop"},
        {"completion": [{"role": "assistant", "content": HMM}, {"role": "assistant", "content": SO}],
         "finish_reason": "stop"},
    ]  # fmt: skip
    found = said_of(write("a.jsonl", odd))
    assert sorted(found["reading"]["notes"].values()) == [1, 1, 1, 2]
    assert found["groups"]["(all)"]["truncated"]["responses_with_a_stop_field"] == 3
    lines = "\n".join(warnings_of({"files": [found]}))
    assert all(word in lines for word in ("'frobnicated'", "<ponder>", "several turns", "abort"))


def test_a_scalar_beside_several_responses_is_said_of_none_of_them(write):
    record = {"responses": [SO, SO], "score": 1, "finish_reason": "length"}
    for trace in traces_of(record, 1)[0]:
        assert trace.first(("score",), each=True) == (None, None)
        assert cut_of(trace) == (None, None)


QUESTIONS = [{"question": f"q{i % 3}", "response": f"Wait, {i}"} for i in range(12)]


@pytest.mark.parametrize(
    ("key", "problems", "words"),
    [
        (lambda i: "same", 3, "the same in every record"),
        (lambda i: f"uuid{i * 7}x", 3, "different in every record"),
        (lambda i: f"p{i % 3}", 3, None),
        (lambda i: f"p{i % 6}", 6, None),
    ],
)
def test_a_problem_key_that_cannot_be_believed_gives_way_to_the_question(
    write, key, problems, words
):
    records = [{"problem_id": key(i), **record} for i, record in enumerate(QUESTIONS)]
    found = said_of(write("a.jsonl", records))
    assert found["groups"]["(all)"]["problems"] == problems
    notes = list(found["reading"]["notes"])
    assert (words is None and not notes) or words in notes[0]


@pytest.mark.parametrize(
    ("ids", "problems"),
    [
        ([f"prob-{i // 4}-{i % 4}" for i in range(12)], 3),
        ([f"prob-{i}" for i in range(12)], 12),
        ([f"run{i // 4}-{i % 5}-{i}" for i in range(12)], 12),
    ],
)
def test_ids_of_samples_without_a_question(write, ids, problems):
    found = said_of(write("a.jsonl", [{"custom_id": one, "response": SO} for one in ids]))
    assert found["groups"]["(all)"]["problems"] == problems
    assert found["reading"]["notes"]


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"response": None, "reasoning": HMM, "finish_reason": "length"}, f"<think>{HMM}"),
        ({"response": SO, "thinking": "enabled"}, SO),
        ({"response": SO, "reasoning": {"effort": "low", "summary": "detailed"}}, SO),
        (message(content=None, refusal="No."), "No."),
    ],
)
def test_what_is_and_is_no_reasoning(record, text):
    (trace,), _ = traces_of(record, 1)
    assert trace.text == text
