"""The tests; folders and names mirror src/epistill."""
