"""Training trunk and head together, on sequence."""
