"""Numbered changes of the catalog's schema: ``0002_what.sql`` brings version 1 to version 2, and so on.

Each file runs once, in one transaction, when a writer opens an older catalog. ``schema.sql`` is version 1 and stays as it
is; a new store runs it and then every migration.
"""
