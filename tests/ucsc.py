"""Read a bigWig's bytes as UCSC's tools do, and refuse what they would: an independent check of files that we write.

After Kent et al. 2010 (Bioinformatics 26:2204), supplementary tables 5 to 19: header, chromosome B+ tree, R tree index,
data sections. Little-endian only, which is what this package writes.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

BIGWIG_MAGIC, CHROM_TREE_MAGIC, INDEX_MAGIC = 0x888FFC26, 0x78CA8C91, 0x2468ACE0
BED_GRAPH, VARIABLE_STEP, FIXED_STEP = 1, 2, 3


class Item(NamedTuple):
    """One value of a bigWig."""

    chrom: str
    start: int
    end: int
    value: float


def read_bigwig(path: Path) -> tuple[dict[str, int], list[Item]]:
    """Return chromosome lengths in the file's order and every item; an assertion fails where the file is not valid."""
    data = path.read_bytes()
    magic, version, n_zoom = struct.unpack_from("<IHH", data)
    chroms_at, full_at, index_at = struct.unpack_from("<QQQ", data, 8)
    assert magic == BIGWIG_MAGIC, "not a little-endian bigWig"
    assert version >= 3, "an old version"
    assert n_zoom >= 1, "no zoom levels: a genome-wide view would read everything"
    (buffer_bytes,) = struct.unpack_from("<I", data, 52)
    names = _chromosomes(data, chroms_at)
    keys = [name.encode() for name in names.values()]
    lengths = _lengths(data, chroms_at)
    assert keys == sorted(keys), "chromosomes are not in the order of their names"
    assert list(names) == sorted(names), "chromosome numbers do not follow the names"
    items: list[Item] = []
    for number, start, end, offset, size in _leaves(data, index_at):
        section = data[offset : offset + size]
        if buffer_bytes:
            section = zlib.decompress(section)
            assert len(section) <= buffer_bytes, "a section is larger than the buffer that the header asks for"
        own = _items(section, names)
        assert own[0].chrom == names[number]
        assert (own[0].start, own[-1].end) == (start, end), "the index does not say where its section lies"
        items += own
    (n_sections,) = struct.unpack_from("<Q", data, full_at)
    assert n_sections, "no data"
    order = {name: place for place, name in enumerate(names.values())}
    for before, after in itertools.pairwise(items):
        key = (order[before.chrom], before.end), (order[after.chrom], after.start)
        assert before.chrom != after.chrom or key[0] <= key[1], f"overlap or disorder at {after}"
        assert key[0][0] <= key[1][0], "chromosomes are out of order"
    for item in items:
        assert 0 <= item.start < item.end <= lengths[item.chrom], f"{item} is not on its chromosome"
    assert data[-4:] == data[:4], "the file does not end with its magic number: cut off"
    return lengths, items


def _chromosomes(data: bytes, at: int) -> dict[int, str]:
    return {number: name for name, number, _ in _tree(data, at)}


def _lengths(data: bytes, at: int) -> dict[str, int]:
    return {name: length for name, _, length in _tree(data, at)}


def _tree(data: bytes, at: int) -> list[tuple[str, int, int]]:
    magic, _, key_size, value_size, n_items = struct.unpack_from("<IIIIQ", data, at)
    assert magic == CHROM_TREE_MAGIC
    assert value_size == 8
    found = _tree_node(data, at + 32, key_size)
    assert len(found) == n_items
    return found


def _tree_node(data: bytes, at: int, key_size: int) -> list[tuple[str, int, int]]:
    is_leaf, _, count = struct.unpack_from("<BBH", data, at)
    found = []
    for place in range(count):
        key_at = at + 4 + place * (key_size + 8)
        name = data[key_at : key_at + key_size].rstrip(b"\0").decode()
        if is_leaf:
            found.append((name, *struct.unpack_from("<II", data, key_at + key_size)))
        else:
            found += _tree_node(data, struct.unpack_from("<Q", data, key_at + key_size)[0], key_size)
    return found


def _leaves(data: bytes, at: int) -> list[tuple[int, int, int, int, int]]:
    """Return chromosome number, start, end, offset and size of each section, in the index's order."""
    assert struct.unpack_from("<I", data, at)[0] == INDEX_MAGIC
    return _index_node(data, at + 48)


def _index_node(data: bytes, at: int) -> list[tuple[int, int, int, int, int]]:
    is_leaf, _, count = struct.unpack_from("<BBH", data, at)
    found = []
    for place in range(count):
        if is_leaf:
            first, start, last, end, offset, size = struct.unpack_from("<IIIIQQ", data, at + 4 + 32 * place)
            assert first == last, "a section of two chromosomes"
            found.append((first, start, end, offset, size))
        else:
            found += _index_node(data, struct.unpack_from("<Q", data, at + 4 + 24 * place + 16)[0])
    return found


def _items(section: bytes, names: dict[int, str]) -> list[Item]:
    number, start, end, step, span, kind, _, count = struct.unpack_from("<IIIIIBBH", section)
    chrom, items = names[number], []
    assert count, "a section without any item"
    for place in range(count):
        if kind == BED_GRAPH:
            begin, stop, value = struct.unpack_from("<IIf", section, 24 + 12 * place)
        elif kind == VARIABLE_STEP:
            begin, value = struct.unpack_from("<If", section, 24 + 8 * place)
            stop = begin + span
        else:
            assert kind == FIXED_STEP
            (value,) = struct.unpack_from("<f", section, 24 + 4 * place)
            begin = start + place * step
            stop = begin + span
        items.append(Item(chrom, begin, stop, value))
    assert (items[0].start, items[-1].end) == (start, end), "a section's header does not say where its items lie"
    return items
