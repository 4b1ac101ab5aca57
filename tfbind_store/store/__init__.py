"""The folder that holds it all, and what is in it by name."""
