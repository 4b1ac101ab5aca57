"""Frozen models over genome, proteins and texts, once: the only writer of embeddings."""
