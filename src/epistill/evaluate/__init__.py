"""From graded responses to numbers with intervals."""
