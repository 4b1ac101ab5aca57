"""The two strands of an embedding: which array holds the other one."""

from __future__ import annotations

from tfbind_store.arrays.layouts import read_layout
from tfbind_store.store.folder import Store

_OTHER = {"forward": "reverse", "reverse": "forward"}


def other_strand(store: Store, name: str) -> str | None:
    """Return the array that holds the same embedding of the other strand, or None where the store has none.

    Parameters
    ----------
    name
        An array of windows of one strand; of one that holds the mean of both there is no other.
    """
    layout = read_layout(store.array_path(name), store.path / "receipts", name=name)
    mine = dict(layout.spec.identity)
    wanted = {**mine, "strand": _OTHER.get(str(mine.get("strand", "forward")))}
    folder = name.partition("/")[0]
    for known in store.array_names():
        if known != name and known.startswith(f"{folder}/"):
            spec = read_layout(store.array_path(known), store.path / "receipts", name=known).spec
            if {"strand": "forward", **spec.identity} == wanted and spec.grid == layout.spec.grid:
                return known
    return None
