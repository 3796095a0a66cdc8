"""Pieces shared out among processes: in order, each once, and a killed one is said."""

import gc
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future
from multiprocessing import parent_process
from pathlib import Path

import pytest

from epistill.errors import EpistillError
from epistill.readers.record_files import Piece
from epistill.traces import worker_pool as parallel
from epistill.traces.worker_pool import map_pieces


def pieces(count):
    return [Piece(Path("a"), "json lines", start, start + 1) for start in range(count)]


def start_and_process(piece):
    return piece.start, os.getpid()


def threshold(_):
    return gc.get_threshold()[0]


def die_in_another_process(piece):
    if parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return piece.start


def wait_for_file(piece):
    """The first piece, if another process has it, ends when the last of the queue is done."""
    if piece.start == 0 and parent_process() is not None:
        for _ in range(6000):
            if piece.path.exists():
                break
            time.sleep(0.01)
        else:
            raise EpistillError("nobody took the last piece")
    if piece.start == parallel.AHEAD * 2 - 1:
        piece.path.touch()
    return piece.start


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_results_come_in_order_and_each_once(workers, count):
    found = list(map_pieces(start_and_process, pieces(count), workers))
    assert [start for start, _ in found] == list(range(count))
    assert len({process for _, process in found}) <= workers


def test_this_process_works_too(tmp_path):
    """Piece 0 is the other process's; only this one can take the piece that it waits for."""
    count = parallel.AHEAD * 2
    shared = [Piece(tmp_path / "done", "json lines", i, i + 1) for i in range(count)]
    assert list(map_pieces(wait_for_file, shared, 2)) == list(range(count))


PROGRAM = """
from operator import attrgetter
from pathlib import Path
import epistill
from epistill.readers.record_files import Piece
from epistill.traces.worker_pool import map_pieces

pieces = [Piece(Path("a"), "json lines", i, i + 1) for i in range(40)]
print(list(map_pieces(attrgetter("start"), pieces, 2)) == list(range(40)))
print(epistill.grade({traces!r}, out={out!r}, workers=2).rows[0]["value"])
"""


@pytest.mark.parametrize("how", ["script", "standard input", "notebook"])
def test_a_program_that_starts_processes_needs_no_guard(how, write, tmp_path, monkeypatch):
    traces = write("a.jsonl", [{"response": f"\\boxed{{{i}}}", "answer": "1"} for i in range(2)])
    code = PROGRAM.format(traces=str(traces), out=str(tmp_path / "graded.jsonl"))
    if how == "notebook":
        nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
        monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
        said = "".join(o["text"] for o in notebook.cells[0].outputs if o["name"] == "stdout")
    else:
        (tmp_path / "program.py").write_text(code)
        name = "-" if how == "standard input" else "program.py"
        said = subprocess.run(
            [sys.executable, name],
            input=code,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    assert said.split() == ["True", "0.5"]


def test_no_more_is_begun_than_the_queue_holds():
    asked = []

    def some():
        for piece in pieces(50):
            asked.append(piece.start)
            yield piece

    class Slow(Executor):
        """A pool that begins nothing."""

        def submit(self, *_):
            return Future()

    found = parallel._shared(start_and_process, some(), Slow(), 4)
    assert next(found)[0] == 0
    assert len(asked) == 4


def test_a_killed_process_is_said():
    with pytest.raises(EpistillError, match="fewer --workers"):
        list(map_pieces(die_in_another_process, pieces(9), 2))


def test_an_error_of_a_piece_is_its_own(tmp_path):
    def fail(piece):
        raise EpistillError(f"piece {piece.start}")

    with pytest.raises(EpistillError, match="piece 0"):
        list(map_pieces(fail, pieces(3), 1))


def test_the_collector_is_as_before():
    before = gc.get_threshold()
    assert list(map_pieces(threshold, pieces(2), 1)) == [parallel.PATIENCE] * 2
    assert gc.get_threshold() == before
