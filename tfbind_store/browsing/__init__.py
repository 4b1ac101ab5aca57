"""The local page over a store."""
