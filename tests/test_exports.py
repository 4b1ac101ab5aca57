"""The public names of the package are exactly those that the README documents."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import tfbind_store

README = Path(__file__).parent.parent / "README.md"


def documented() -> set[str]:
    """Return the names in the README's section on the library."""
    section = README.read_text(encoding="utf-8").split("## From Python", 1)[1].split("\n## ", 1)[0]
    return set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE))


def test_all_is_sorted_and_documented() -> None:
    assert tfbind_store.__all__ == sorted(tfbind_store.__all__)
    assert set(tfbind_store.__all__) - {"__version__"} == documented()


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(tfbind_store.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == set(tfbind_store.__all__) - {"__version__"}


@pytest.mark.parametrize("name", tfbind_store.__all__)
def test_each_name_is_there(name: str) -> None:
    assert getattr(tfbind_store, name) is not None
    assert name in dir(tfbind_store)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Shop'"):
        tfbind_store.Shop  # noqa: B018
