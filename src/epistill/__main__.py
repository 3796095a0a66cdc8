"""`python -m epistill`."""

from epistill.cli import main

if __name__ == "__main__":
    main()
