"""The ways in which a file is damaged, and what is said of it: one line that names it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def flipped_bit(path, other):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncated(path, other):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def last_byte_lost(path, other):
    path.write_bytes(path.read_bytes()[:-1])


def missing(path, other):
    path.unlink()


def a_folder(path, other):
    path.unlink()
    path.mkdir()


def a_pipe(path, other):
    """Whoever opens it for reading waits for a writer, who never comes."""
    path.unlink()
    os.mkfifo(path)


def first_number(becomes):
    def damage(path, other):
        text = path.read_text()
        start = next(i for i, c in enumerate(text) if c.isdigit() and text[i - 1] == " ")
        path.write_text(text[:start] + becomes + text[start + 1 :])

    return damage


def another_runs(path, other):
    shutil.copy(other, path)


def lost_line(path, other):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))


def doubled_line(path, other):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *lines]))


def swapped_lines(path, other):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[1:2], lines[0], *lines[2:]]))


def edited_step(path, other):
    path.write_text(
        path.read_text().replace('"step": 1', '"step": 7').replace('"step": 3', '"step": 2')
    )


def content(data):
    def damage(path, other):
        path.write_bytes(data)

    return damage


EVERY_FILE = {
    "flipped bit": flipped_bit, "truncated": truncated, "last byte lost": last_byte_lost,
    "missing": missing, "a folder": a_folder, "a pipe": a_pipe, "another run's": another_runs,
    "empty": content(b""), "garbage": content(bytes(range(256)) * 8), "{}": content(b"{}\n"),
}  # fmt: skip
MARKUP = {"[]": content(b"[]\n"), "null": content(b"null"), "deep": content(b"[" * 100_000)}
JSON = MARKUP | {"NaN": first_number("NaN"), "1e400": first_number("1e400")}
LINES = {"lost line": lost_line, "doubled line": doubled_line, "swapped lines": swapped_lines,
         "numbers": content(b"1\n2\n3\n4\n")}  # fmt: skip
STEP = {"edited step": edited_step}


def cases(table):
    return [pytest.param(name, way, id=f"{name.rpartition('/')[2]}: {told}")
            for name, ways in table.items() for told, way in ways.items()]  # fmt: skip


def one_line(error, name):
    said = str(error)
    assert "\n" not in said
    assert Path(name).name in said or Path(name).parent.name in said, said
