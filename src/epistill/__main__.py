"""`python -m epistill`, and the `epistill` command.

Processes that are spawned import their parent's main module again: it must cost them nothing.
"""

from __future__ import annotations


def main() -> None:
    """Entry point."""
    from epistill.interrupts import ended_before_finalization

    with ended_before_finalization():
        from epistill.cli import main as command

        command()


if __name__ == "__main__":
    main()
