from __future__ import annotations

import pytest

from epistill.errors import EpistillError
from epistill.records import Message
from epistill.rollouts.prompts import render_prompt


def test_the_lab_template_opens_thinking(lab_model):
    prompt = render_prompt(lab_model.tokenizer, [Message("user", "edges 13 gold from 13")])
    assert prompt.opens_thinking
    assert prompt.text.endswith("<think>\n")
    assert lab_model.tokenizer.convert_ids_to_tokens(list(prompt.ids))[-1] == "<think>"
    assert lab_model.tokenizer.unk_token_id not in prompt.ids


def test_thinking_mode_reaches_the_template(lab_model):
    tokenizer = lab_model.tokenizer.__class__.from_pretrained(lab_model.tokenizer.name_or_path)
    tokenizer.chat_template = "{{ messages[0].content }} {{ enable_thinking }}"
    for thinking, shown in ((True, "True"), (False, "False"), (None, "")):
        rendered = render_prompt(tokenizer, [Message("user", "edges")], thinking=thinking)
        assert rendered.text == f"edges {shown}"


@pytest.mark.parametrize(
    ("template", "content", "told"),
    [
        ("{{ messages[0].contents }} <think>", "edges", "the same whatever the last of them says"),
        ("gold", "edges", "the same whatever the last of them says"),
        ("\n\n", "edges", "the same whatever the last of them says"),
        ("{{ messages[0].content }}", "", "makes an empty prompt"),
    ],
)
def test_a_template_that_leaves_out_what_is_asked_is_refused(lab_model, template, content, told):
    """A misspelt name is nothing in Jinja: a run would train on prompts without their problems."""
    tokenizer = lab_model.tokenizer.__class__.from_pretrained(lab_model.tokenizer.name_or_path)
    tokenizer.chat_template = template
    with pytest.raises(EpistillError, match=told) as caught:
        render_prompt(tokenizer, [Message("user", content)])
    assert "\n" not in str(caught.value)


def test_a_template_may_change_what_is_asked(lab_model):
    tokenizer = lab_model.tokenizer.__class__.from_pretrained(lab_model.tokenizer.name_or_path)
    tokenizer.chat_template = "{{ messages[0].content | upper }}"
    assert render_prompt(tokenizer, [Message("user", "edges")]).text == "EDGES"


def test_a_tokenizer_without_template_and_a_template_that_refuses(lab_model):
    tokenizer = lab_model.tokenizer.__class__.from_pretrained(lab_model.tokenizer.name_or_path)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(EpistillError, match="refused the messages"):
        render_prompt(tokenizer, [Message("system", "edges")])
    tokenizer.chat_template = None
    with pytest.raises(EpistillError, match="no chat template"):
        render_prompt(tokenizer, [Message("user", "edges")])
