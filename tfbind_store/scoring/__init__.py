"""A trained head over any bins, with a biotype's signal beside it where a gate was trained."""
