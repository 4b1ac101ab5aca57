"""Training a small trunk on the peaks of a selection."""
