"""A function within a function is checked at every definition, with the variables of that one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from beartype.roar import BeartypeCallHintViolation

from tests.helpers.runtime_types import check, inner_checks

checked = inner_checks(check)


def adding(term: Any) -> Callable[..., Any]:
    def add(number: int, *, times: int = 2) -> int:
        return (number + term) * times

    return checked(add)


def test_each_definition_has_its_own_variables_and_the_same_checks():
    one, ten = adding(1), adding(10)
    assert (one(1), ten(1), one(1, times=1), ten(number=1, times=1)) == (4, 22, 2, 11)
    for function in (one, ten):
        for arguments, named in (("1",), {}), ((1,), {"times": "2"}):
            with pytest.raises(BeartypeCallHintViolation):
                function(*arguments, **named)
    with pytest.raises(BeartypeCallHintViolation, match="return"):
        adding(0.5)(1)


def test_what_has_no_annotations_is_left_as_it_is():
    def made(value):
        def found():
            return value

        return found, checked(found)

    for value in (1, 2):
        plain, same = made(value)
        assert same is plain
        assert same() == value
