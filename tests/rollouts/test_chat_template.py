"""A template that loops, eats memory or computes without end is one line; others render alike."""

from __future__ import annotations

import os

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from epistill.errors import EpistillError
from epistill.records import Message
from epistill.rollouts import chat_template
from epistill.rollouts.chat_template import fill_template, only_walks
from epistill.rollouts.prompts import render_prompt
from epistill.studies.tiny import _CHAT, _THINKING

HI = [{"role": "user", "content": "hi"}]
FOR = "{% for i in range(99999) %}"
GROW = (
    "{% set ns = namespace(x='aa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}"
)
WALK = "{% for message in messages %}"
STOPPED = {
    "loop": (f"{FOR}{FOR}{{% endfor %}}{{% endfor %}}", "longer than 0.3 s of processor time"),
    "one_call": ("{{ 9 ** (9 ** 9) }}", "longer than 0.3 s of processor time"),
    "for_some_messages": (
        f"{{% if messages[0].content == 'hi' %}}{FOR}{FOR}{{% endfor %}}{{% endfor %}}{{% endif %}}",
        "longer than 0.3 s of processor time",
    ),
    "growing": (GROW, "no memory is left|processor time"),
    "repeated": ("{{ 'a' * 9999999999 }}", "no memory is left"),
    "padded": ("{{ '%09999999999d' % 1 }}", "no memory is left"),
    "long": ("{% for i in range(5000) %}{{ 'wait ' * 2000 }}{% endfor %}", "50,000,000 characters"),
    "recursive": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "outside": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "file": ("{% include '/etc/passwd' %}", "no loader"),
    "syntax": ("{{ (", "unexpected"),
    "deep": ("{{" + "(" * 100_000, "recursion"),
    "list": ([{"name": "x", "template": "y"}], "list"),
}


@pytest.fixture(autouse=True, scope="module")
def soon():
    """The same limit, sooner reached."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template, "LIMIT_S", 0.3)
        chat_template._worker.cache_clear()
        yield
    chat_template._worker(os.getpid()).close()
    chat_template._worker.cache_clear()


@pytest.mark.parametrize("name", STOPPED)
def test_a_hostile_template_is_one_line(name, lab_model):
    template, told = STOPPED[name]
    tokenizer = lab_model.tokenizer.__class__.from_pretrained(lab_model.tokenizer.name_or_path)
    tokenizer.chat_template = template
    refused = rf"refused the messages \(roles \['user'\]\): .*({told})"
    with pytest.raises(EpistillError, match=refused) as caught:
        render_prompt(tokenizer, [Message("user", "hi")])
    assert "\n" not in str(caught.value)
    tokenizer.chat_template = "{{ messages[0].content | upper }}"
    assert render_prompt(tokenizer, [Message("user", "hi")]).text == "HI"  # a new worker


PLAIN = [
    *(f"{_CHAT}{thinking}{{% endif %}}" for thinking in _THINKING.values()),
    WALK + "{{ bos_token ~ message['role'] }}{% if loop.first and not x %}!{% endif %}{% endfor %}",
]
OTHERS = [
    WALK + "{{ message.content | trim }}{% endfor %}",
    "{%- for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{{ messages | tojson }}{{ strftime_now('') }}",
    f"{WALK}{WALK}.{{% endfor %}}{{% endfor %}}",
    "{% for a in messages[0].content %}{{ a }}{% endfor %}",
    "{% set x = 1 %}{{ x }}",
    "{{ 2 + 2 }}",
    "." + "{{ x }}" * 99,
]


@pytest.mark.parametrize("template", [*PLAIN, *OTHERS])
def test_both_ways_render_what_transformers_renders(template):
    """A template is filled here only where its form says that it ends."""
    assert only_walks(template) == (template in PLAIN)
    for chat in ([{"role": "user", "content": " h\ud800\u2028"}], [*HI, *HI, *HI]):
        seen = {"bos_token": "<s>", "enable_thinking": False}
        (expected,), _ = render_jinja_template([chat], chat_template=template, **seen, add_generation_prompt=True)  # fmt: skip
        assert fill_template(template, seen, chat) == expected


@pytest.mark.parametrize("nested", ["loop.length", "messages", "range(9)"])
def test_walks_inside_walks_and_over_other_things_are_not_plain(nested):
    assert not only_walks(f"{WALK}{{% if x %}}{{% for m in {nested} %}}{{% endfor %}}{{% endif %}}{{% endfor %}}")  # fmt: skip
