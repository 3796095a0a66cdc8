"""`python -m epistill`, and the `epistill` command.

Processes that are spawned import their parent's main module again: it must cost them nothing.
"""

from __future__ import annotations


def main() -> None:
    """Entry point."""
    from epistill.interrupts import (
        StoppedBySignal,
        ended_before_finalization,
        say_stopped,
        stop_in_order,
    )

    with ended_before_finalization():
        try:
            stop_in_order()
            from epistill.cli import main as command

            command()
        except StoppedBySignal as stopped:  # while it was imported
            say_stopped(stopped.number)


if __name__ == "__main__":
    main()
