"""What a library raised, said on one line."""

from __future__ import annotations

from epistill.errors import LINE, first_line


def test_the_first_line_of_an_error_is_bounded():
    assert first_line(ValueError(" one\ntwo")) == "one"
    assert first_line(ValueError("")) == "ValueError"
    long = first_line(ValueError("x" * 10_000 + "\ny"))
    assert len(long) == LINE
    assert long.endswith("x...")
