"""Numbered changes of the catalog's schema: ``0002_what.sql`` brings version 1 to version 2, and so on.

Each file runs once, in one transaction, when a writer opens an older catalog. ``schema.sql`` is version 1 and stays as
it is; a new store runs it and then every migration.
"""

from __future__ import annotations

import importlib.resources
import re

_MIGRATION = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")


def newest_schema() -> int:
    """Return the schema version that this package reads and writes."""
    return max(schema_steps())


def schema_steps() -> dict[int, str]:
    """Return the SQL that leads to each version from the one before."""
    package = importlib.resources.files("tfbind_store")
    steps = {1: (package / "schema.sql").read_text(encoding="utf-8")}
    for entry in (package / "migrations").iterdir():
        if match := _MIGRATION.match(entry.name):
            steps[int(match[1])] = entry.read_text(encoding="utf-8")
    return steps
