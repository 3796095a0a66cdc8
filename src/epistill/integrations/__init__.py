"""Doors into other libraries: what they own is theirs, what is measured is ours."""
