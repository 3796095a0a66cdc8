"""What responses look like: words, epistemic markers and their lexicons, self-corrections."""
