"""What responses look like: epistemic markers and their lexicons."""
