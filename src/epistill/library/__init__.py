"""What each command does, as a function that returns a record; `epistill` offers them."""
