from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epistill.errors import EpistillError
from epistill.records import Message
from epistill.rollouts.prompts import opens_thinking, render_prompt, split_thinking


@pytest.mark.parametrize(
    ("text", "opened", "form", "thinking", "answer"),
    [
        ("<think> a </think> b", False, "paired", " a ", "b"),
        ("a </think> b", True, "opened", "a ", "b"),
        ("a </think> b", False, "opened", "a ", "b"),  # nobody told us: the tag does
        ("<think> a", False, "unclosed", " a", ""),
        ("a b c", True, "unclosed", "a b c", ""),
        ("a b c", False, "absent", "", "a b c"),
        ("well <think>a</think> b", False, "paired", "a", "well\nb"),
        ("4<think>no</think>2", False, "paired", "no", "4\n2"),  # not 42
        ("<think>a</think> <think>b", False, "unclosed", "a b", ""),
        ("so 5. <think>b", False, "unclosed", "so 5. b", ""),
        ("a</think> b <think>c", True, "unclosed", "a b c", ""),
        ("x </think> y </think> z", True, "opened", "x </think> y ", "z"),
        ("", False, "absent", "", ""),
    ],
)
def test_splitting_in_every_case(text, opened, form, thinking, answer):
    found = split_thinking(text, opened_in_prompt=opened)
    assert (found.form, found.thinking, found.answer) == (form, thinking, answer)


@given(st.text(alphabet="ab ", max_size=20), st.text(alphabet="ab ", max_size=20))
def test_a_template_that_opened_the_tag_loses_no_thinking(thinking, answer):
    found = split_thinking(f"{thinking}</think>{answer}", opened_in_prompt=True)
    assert found.thinking == thinking
    assert found.answer == answer.strip()


def test_the_lab_template_opens_thinking(lab_model):
    prompt = render_prompt(lab_model.tokenizer, [Message("user", "edges 13 gold from 13")])
    assert prompt.opens_thinking
    assert prompt.text.endswith("<think>\n")
    assert lab_model.tokenizer.convert_ids_to_tokens(list(prompt.ids))[-1] == "<think>"
    assert lab_model.tokenizer.unk_token_id not in prompt.ids


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<assistant><think>\n", True),
        ("<assistant>", False),
        ("<assistant><think>\n\n</think>\n\n", False),
        ("solution: <think> a </think> b <assistant>", False),
        ("solution: <think> a </think> b <assistant><think>", True),
    ],
)
def test_whether_the_prompt_opens_thinking(text, expected):
    assert opens_thinking(text) is expected


def test_thinking_mode_reaches_the_template(lab_model):
    tokenizer = lab_model.tokenizer.__class__.from_pretrained(lab_model.tokenizer.name_or_path)
    tokenizer.chat_template = "{{ messages[0].content }} {{ enable_thinking }}"
    for thinking, shown in ((True, "True"), (False, "False"), (None, "")):
        rendered = render_prompt(tokenizer, [Message("user", "edges")], thinking=thinking)
        assert rendered.text == f"edges {shown}"


def test_a_tokenizer_without_template_and_a_template_that_refuses(lab_model):
    tokenizer = lab_model.tokenizer.__class__.from_pretrained(lab_model.tokenizer.name_or_path)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(EpistillError, match="refused the messages"):
        render_prompt(tokenizer, [Message("system", "edges")])
    tokenizer.chat_template = None
    with pytest.raises(EpistillError, match="no chat template"):
        render_prompt(tokenizer, [Message("user", "edges")])
