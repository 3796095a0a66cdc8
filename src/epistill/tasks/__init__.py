"""What is asked, and how an answer is graded. Importing it imports no torch."""
