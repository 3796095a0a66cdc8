"""Records of LiveCodeBench (`livecodebench/code_generation_lite`) as problems with tests.

Tests are a JSON list of {input, output, testtype}. The private ones come as base64 of zlib of a
*pickled* string; it is read out of the pickle's opcodes, and nothing is ever unpickled.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from collections.abc import Mapping
from typing import Any

from epistill.errors import EpistillError
from epistill.tasks.code import CodeTest, CodeTests

COLUMNS = ("question_content", "public_test_cases")
_MAX_TESTS_BYTES = 2**30
_TEXT_OPCODES = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_OTHER_OPCODES = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP"}

ON_STDIN = (
    "\n\nWrite a Python program that reads the input from stdin and writes the answer to stdout."
)
ON_CALL = "\n\nComplete this Python code; it will be called, so do not read any input.\n```python\n"
FORMAT = "\nGive the whole program in one ```python block at the end."


def is_livecodebench(record: Mapping[str, Any]) -> bool:
    """Whether a record has its columns."""
    return all(column in record for column in COLUMNS)


def read_livecodebench(where: str, record: Mapping[str, Any]) -> tuple[str, str]:
    """(question, `CodeTests` as JSON) of one record; `where` names file and row in messages.

    Raises:
        EpistillError: Tests that cannot be read.
    """
    starter = str(record.get("starter_code") or "")
    question = str(record["question_content"])
    question += f"{ON_CALL}{starter.rstrip()}\n```" if starter.strip() else ON_STDIN
    try:
        public = _tests(record["public_test_cases"], public=True)
        private = _tests(record.get("private_test_cases") or "[]", public=False)
        metadata = record.get("metadata") or {}
        named = json.loads(metadata) if isinstance(metadata, str) else metadata
        function = named.get("func_name") if starter.strip() else None
        if starter.strip() and function is None:
            raise ValueError("starter code, but no `func_name` in `metadata`")
        tests = CodeTests((*public, *private), function)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EpistillError(
            f"{where}: its tests cannot be read ({error}); expected the columns of "
            "livecodebench/code_generation_lite"
        ) from error
    return question + FORMAT, tests.to_json()


def _tests(value: Any, *, public: bool) -> list[CodeTest]:
    read = value
    if isinstance(value, str):
        read = json.loads(value if value.lstrip().startswith("[") else _packed(value))
    return [CodeTest(str(test["input"]), str(test["output"]), public) for test in read]


def _packed(text: str) -> str:
    """The string inside base64(zlib(pickle(string))), without running the pickle."""
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(text, validate=True), _MAX_TESTS_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"neither JSON nor packed tests: {error}") from error
    if unpacker.unconsumed_tail:
        raise ValueError(f"more than {_MAX_TESTS_BYTES} bytes of tests")
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _TEXT_OPCODES:
            texts.append(str(argument))
        elif opcode.name not in _OTHER_OPCODES:
            raise ValueError(f"a pickle that is more than a string (opcode {opcode.name})")
    if len(texts) != 1:
        raise ValueError(f"a pickle of {len(texts)} strings, expected 1")
    return texts[0]
