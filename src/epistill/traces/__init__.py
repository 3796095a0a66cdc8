"""Traces that people already have: read, measure, grade, compare. No model, no torch."""
