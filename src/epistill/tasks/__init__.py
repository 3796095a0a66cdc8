"""What is asked, and how an answer is graded. Importing this package imports no torch."""

from epistill.tasks.answers import extract_answer
from epistill.tasks.grading import Grader, grade_responses

__all__ = ["Grader", "extract_answer", "grade_responses"]
