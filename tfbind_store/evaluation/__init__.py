"""Judging a run on what it has not seen, beside what it must beat."""
