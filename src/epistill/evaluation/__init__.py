"""From graded responses to numbers with intervals. Importing it imports no torch."""
