"""What tells problems apart follows from what a file holds now."""

from __future__ import annotations

from epistill.traces.fields import BY_QUESTION
from epistill.traces.problem_keys import problem_key


def rows(key, count=4):
    return [
        {"id": key(i), "problem_id": key(i), "question": f"{i % 2} + 1?", "response": "2"}
        for i in range(count)
    ]


def test_a_file_that_is_written_again_is_looked_at_again(write):
    path = write("a.jsonl", rows(lambda i: "same"))
    found = problem_key(path, None, None)
    assert found.field == BY_QUESTION
    assert "the same in every record" in found.note
    assert problem_key(path, None, None) is found  # not read twice
    again = write("a.jsonl", rows(lambda i: f"p{i % 2}"))
    assert again == path
    assert problem_key(path, None, None).note is None
