"""Pieces of files, shared out among processes, this one included.

Enters: pieces, and a function of one. Leaves: its results, in order. It knows nothing of traces.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from epistill.errors import EpistillError
from epistill.interrupts import children_without_main
from epistill.readers.record_files import Piece

Found = TypeVar("Found")
AHEAD = 8  # pieces for each process that are begun before the first of them is yielded
# New objects between two collections. A batch makes thousands of tuples that live for a moment;
# walking over them again and again costs a twelfth of the time, and finds nothing.
PATIENCE = 100_000


def map_pieces(
    function: Callable[[Piece], Found], pieces: Sequence[Piece], workers: int
) -> Iterator[Found]:
    """A function of each piece, in order, by so many processes; it must be importable.

    This process is one of them: it begins at once, while the others are still starting, with the
    first piece that none of them has.

    Raises:
        EpistillError: A process was killed.
    """
    if workers == 1 or len(pieces) <= 1:
        yield from (_run(function, piece) for piece in pieces)
        return
    import multiprocessing

    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(pieces)) - 1, spawn)
    try:
        yield from _shared(function, iter(pieces), pool, AHEAD * workers)
    except BrokenProcessPool as error:
        raise EpistillError(
            "a worker process was killed, most likely for memory; use fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _shared(
    function: Callable[[Piece], Found],
    pieces: Iterator[Piece],
    pool: Executor,
    ahead: int,
) -> Iterator[Found]:
    queue: deque[tuple[Piece, Future[Found]]] = deque()
    while True:
        with children_without_main():
            for piece in islice(pieces, ahead - len(queue)):
                queue.append((piece, pool.submit(_run, function, piece)))
        if not queue:
            return
        while not queue[0][1].done() and (mine := _take(queue)) is not None:
            piece, _ = queue[mine]
            done: Future[Found] = Future()
            done.set_result(_run(function, piece))
            queue[mine] = piece, done
        yield queue.popleft()[1].result()


def _take(queue: deque[tuple[Piece, Future[Found]]]) -> int | None:
    """Index of the first piece that nobody has begun, which nobody else will begin now."""
    for index, (_, future) in enumerate(queue):
        if not future.done() and future.cancel():
            return index
    return None


def _run(function: Callable[[Piece], Found], piece: Piece) -> Found:
    with _rare_collections():
        return function(piece)


@contextmanager
def _rare_collections() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(PATIENCE, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
