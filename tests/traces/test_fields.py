"""Where responses, problems, tokens and truncation stand in the records of common tools."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from epistill.traces.fields import (
    Trace,
    Unusable,
    cut_of,
    get,
    number_of,
    opened_in_prompt,
    problem_of,
    question_of,
    tokens_of,
    traces_of,
)
from epistill.traces.measure import measure_files
from epistill.traces.options import Options

CHAT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


@pytest.mark.parametrize(
    ("record", "texts", "field"),
    [
        ({"response": "a"}, ["a"], "response"),
        ({"completion": "a", "prompt": "p"}, ["a"], "completion"),
        ({"output": "a", "input": "p"}, ["a"], "output"),
        ({"generated_responses": ["a", "b"]}, ["a", "b"], "generated_responses"),
        ({"messages": CHAT}, ["4"], "messages"),
        ({"messages": json.dumps(CHAT)}, ["4"], "messages"),
        ({"completion": [{"role": "assistant", "content": "a"}]}, ["a"], "completion"),
        ({"completions": [[CHAT[1]], [CHAT[1]]]}, ["4", "4"], "completions"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ["a"], "conversations"),
        ({"choices": [{"message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}]}, ["a"], "choices"),
        ({"choices": ["A", "B"], "response": "a"}, ["a"], "response"),
        ({"samples": 4, "text": "a"}, ["a"], "text"),
        ({"outputs": [{"text": "a"}, {"text": "b"}]}, ["a", "b"], "outputs"),
        ({"rollout": {"text": "a"}}, ["a"], "rollout.text"),
        ({"response": None, "output": "a"}, ["a"], "output"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": "4", "reasoning_content": "hmm"}]},
         ["<think>hmm</think>4"], "messages"),
        ({"response": [{"type": "text", "text": "x"}]}, ["x"], "response"),
        ({"completions": [CHAT[1], {"role": "assistant", "content": "5"}]}, ["4", "5"], "completions"),
        ({"messages": [CHAT[1], {"role": "assistant", "content": "5"}]}, ["4\n5"], "messages"),
        ({"response": {"status_code": 200, "body": {"choices": [{"message": CHAT[1]}]}}}, ["4"],
         "response.body.choices"),
    ],
)  # fmt: skip
def test_the_response_is_found(record, texts, field):
    traces, found = traces_of(record, 1)
    assert ([t.text for t in traces], found) == (texts, field)


def test_a_named_field_is_used_and_no_other():
    traces, found = traces_of({"response": "a", "x": {"y": "b"}}, 1, "x.y")
    assert (traces[0].text, found) == ("b", "x.y")
    traces, found = traces_of({"response": "a"}, 1, "x.y")
    assert isinstance(traces[0], Unusable)
    assert str(traces[0]) == "no field x.y"


def of(**record):
    return Trace("t", record, 1)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"problem_id": 3, "id": 9}, ("3", "problem_id")),
        ({"id": 9, "question": "2+2?"}, ("2+2?", "question")),
        ({"id": 9}, ("9", "id")),
        ({"messages": CHAT}, ("2+2?", "messages")),
        ({"prompt": CHAT[:1]}, ("2+2?", "prompt")),
        ({"problem": {"id": "p7"}}, ("p7", "problem.id")),
        ({"id": 12345678901234567890123}, ("12345678901234567890123", "id")),
        ({"id": Decimal("3.5")}, ('"3.5"', "id")),
        ({"id": {1: b"x"}}, ('{"1":"b\'x\'"}', "id")),
        ({}, (None, None)),
    ],
)
def test_the_problem_is_told(record, expected):
    assert problem_of(of(**record)) == expected


def test_the_question_is_the_last_user_turn():
    again = [*CHAT, {"role": "user", "content": "sure?"}, CHAT[1]]
    assert question_of(of(messages=again)) == ("sure?", "messages")


@pytest.mark.parametrize(
    ("record", "tokens", "cut"),
    [
        ({"n_tokens": 7, "finish_reason": "length"}, 7, True),
        ({"completion_ids": [1, 2, 3], "finish_reason": "stop"}, 3, False),
        ({"usage": {"completion_tokens": 5}, "truncated": True}, 5, True),
        ({"stop_reason": 151645}, None, False),  # the id of the token that ended it
        ({"truncated": 0}, None, False),
        ({"truncated": "true"}, None, True),
        ({"truncated": ["?"]}, None, None),
        ({"finish_reason": {"type": "length", "length": 10}}, None, True),  # SGLang
        ({"finish_reason": {"type": "stop", "matched": 2}}, None, False),
        ({"n_tokens": float("nan")}, None, None),
        ({"n_tokens": float("inf")}, None, None),
        ({"n_tokens": 1e308}, None, None),
        ({"n_tokens": -1}, None, None),
        ({}, None, None),
    ],
)
def test_tokens_and_truncation(record, tokens, cut):
    assert tokens_of(of(**record))[0] == tokens
    assert cut_of(of(**record))[0] is cut


def test_lists_beside_a_list_of_responses_are_read_element_by_element():
    record = {
        "responses": ["a", "b"],
        "finish_reasons": ["stop", "length"],
        "score": [1, 0],
        "n_tokens": [3, 4, 5],
    }
    first, second = traces_of(record, 1)[0]
    assert (cut_of(first)[0], cut_of(second)[0]) == (False, True)
    assert second.first(("score",)) == (0, "score")
    assert tokens_of(first)[0] == 3  # another length: one list of token ids


def test_what_a_server_counts_over_all_choices_is_known_of_none():
    one, two = ({"choices": [{"text": "a"}] * n, "usage": {"completion_tokens": 9}} for n in (1, 2))
    assert tokens_of(traces_of(one, 1)[0][0]) == (9, "usage.completion_tokens")
    assert tokens_of(traces_of(two, 1)[0][0]) == (None, None)


def test_an_id_inside_a_response_is_not_the_problems():
    record = {"id": "p0", "samples": [{"id": 0, "text": "a"}, {"id": 1, "text": "b"}]}
    assert [problem_of(trace) for trace in traces_of(record, 1)[0]] == [("p0", "id")] * 2
    inside = {"samples": [{"problem_id": 7, "text": "a"}]}
    assert problem_of(traces_of(inside, 1)[0][0]) == ("7", "problem_id")


@pytest.mark.parametrize(
    ("value", "number"), [("true", 1), ("False", 0), ([1], 1), (0.25, 0.25), (float("nan"), None)]
)
def test_verdicts_as_people_write_them(value, number):
    assert number_of(of(score=value), ("score",), "score")[0] == number


def test_an_opened_thinking_block_is_seen_in_the_prompt():
    assert opened_in_prompt(of(rendered_prompt="<|assistant|><think>\n"))
    assert opened_in_prompt(of(opened_thinking=True, prompt="x"))
    assert not opened_in_prompt(of(prompt="<think></think>"))


def test_dots_lead_inside_and_a_plain_name_comes_first():
    assert get({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert get({"a": {"b": 2}}, "a.b") == 2
    assert get({"a": 3}, "a.b") is None


def test_what_was_used_is_counted_by_name(write):
    path = write(
        "a.jsonl",
        [
            {"response": "a", "problem_id": 1, "finish_reason": "stop", "n_tokens": 3},
            {"output": "b", "question": "?", "truncated": False},
            {"outputs": ["c", "d"], "question": "?"},
        ],
    )
    (found,) = measure_files([path], Options())
    assert found.reading.fields == {
        "response": {"response": 1, "output": 1, "outputs": 2},
        "problem": {"problem_id": 1, "question": 3},
        "stop": {"finish_reason": 1, "truncated": 1},
        "tokens": {"n_tokens": 1},
    }
