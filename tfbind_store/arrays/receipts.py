"""Receipts: one JSON file per shard, the only proof that the shard exists.

A receipt says what was written (fingerprint, size, hashes), the state of every window in it, and how it came to be. It
carries a checksum of itself. A shard file without a receipt is not there; a receipt that is odd in any way is refused.
*Window* here means one inner Zarr chunk: one window of the genome, one text, or one short run of residues.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from tfbind_store.durable import read_regular, sealed_json, unsealed_json
from tfbind_store.errors import DamagedShard

RECEIPT_FORMAT = 1
_RECEIPT_NAME = re.compile(r"^(\d{6,12})\.json$")
_HEX64 = re.compile(r"^[0-9a-f]{16}$")
_HEX128 = re.compile(r"^[0-9a-f]{32}$")
_HEX256 = re.compile(r"^[0-9a-f]{64}$")


class WindowState(StrEnum):
    """What became of one window."""

    ok = "ok"
    """Its numbers are there."""
    all_n = "all_n"
    """Nothing to read: every base is unknown. NaN stands there."""
    failed = "failed"
    """The embedder could not do it; the receipt says why. NaN stands there."""
    not_asked = "not_asked"
    """Nobody asked for it yet. NaN stands there."""


class Completeness(NamedTuple):
    """How many windows of an array are in which state."""

    n_ok: int
    n_all_n: int
    n_failed: int
    n_not_asked: int
    n_planned: int

    @property
    def is_done(self) -> bool:
        """Whether every window is ok or has nothing to read."""
        return self.n_ok + self.n_all_n == self.n_planned


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The commit record of one shard."""

    array: str
    """Name of the array, for example ``embeddings/windows``."""
    fingerprint: str
    """Of the array's spec: 64 hex digits."""
    shard_id: int
    generation: int
    """1 for the first publication, one more each time the shard is published again."""
    states: tuple[WindowState, ...]
    window_xxh3_64: tuple[str | None, ...]
    """Hash of each ok window's bytes, None for the others."""
    reasons: Mapping[int, str] = field(default_factory=dict)
    """Why a failed window failed, by its place in the shard."""
    size_bytes: int
    xxh3_128: str
    """Hash of the whole file."""
    absmax: float | None
    """Largest absolute value among the ok windows."""
    created: str
    """UTC time, ISO 8601."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Host, versions, seconds and whatever else the writer wants known; decides nothing."""

    @property
    def n_windows(self) -> int:
        """Windows in the shard, of whatever state."""
        return len(self.states)

    def count(self, state: WindowState) -> int:
        """Return how many windows are in `state`."""
        return self.states.count(state)

    def to_json(self) -> bytes:
        """Return the file's text."""
        value = asdict(self)
        value["reasons"] = {str(place): reason for place, reason in self.reasons.items()}
        value["format"] = RECEIPT_FORMAT
        return sealed_json(value)

    @classmethod
    def from_json(cls, text: bytes, *, where: str) -> Receipt:
        """Read a receipt, refusing anything odd.

        Raises
        ------
        DamagedShard
            If the text is not exactly what `to_json` writes.
        """
        try:
            return cls._checked(unsealed_json(text))
        except (ValueError, TypeError, KeyError) as error:
            raise _damaged(f"not a valid receipt: {error}", where) from error

    @classmethod
    def _checked(cls, value: dict[str, Any]) -> Receipt:
        if value.pop("format", None) != RECEIPT_FORMAT:
            raise ValueError("unknown receipt format")
        if value.keys() != _FIELD_NAMES:
            raise ValueError(f"fields do not fit: {sorted(value.keys() ^ _FIELD_NAMES)}")
        hashes = value["window_xxh3_64"] = tuple(value["window_xxh3_64"])
        states = value["states"] = tuple(_STATES[name] for name in value["states"])
        value["reasons"] = {int(place): str(reason) for place, reason in value["reasons"].items()}
        if len(states) != len(hashes) or not states:
            raise ValueError(f"{len(states)} states for {len(hashes)} hashes")
        for state, digest in zip(states, hashes, strict=True):
            if (state is WindowState.ok) != (digest is not None) or (digest and not _HEX64.match(digest)):
                raise ValueError(f"hash {digest!r} for a window that is {state}")
        if not (_HEX128.match(value["xxh3_128"]) and _HEX256.match(value["fingerprint"])):
            raise ValueError("a hash has the wrong length")
        if type(value["shard_id"]) is not int or value["shard_id"] < 0 or value["generation"] < 1:
            raise ValueError("shard_id or generation out of range")
        return cls(**value)


_FIELD_NAMES = {f.name for f in fields(Receipt)}
_STATES = {state.value: state for state in WindowState}


def _damaged(what: str, where: str) -> DamagedShard:
    return DamagedShard(what, where=where, fix="run tfbind verify, then tfbind repair; nothing is deleted")


def receipt_path(receipts_dir: Path, shard_id: int) -> Path:
    """Return where the receipt of a shard is."""
    return receipts_dir / f"{shard_id:06d}.json"


def read_receipt(path: Path | str) -> Receipt | None:
    """Return the receipt at `path`, None where there is none.

    Raises
    ------
    DamagedShard
        If there is something, but no valid receipt.
    """
    try:
        text = read_regular(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _damaged(f"cannot be read as a receipt: {error.strerror}", str(path)) from error
    return Receipt.from_json(text, where=str(path))


def read_receipts(
    receipts_dir: Path, *, array: str, fingerprint: str, on_damage: str = "raise"
) -> tuple[dict[int, Receipt], dict[int, DamagedShard]]:
    """Return the receipts of an array by shard, and those refused.

    With ``on_damage="raise"`` the first refused one is raised instead.
    """
    found: dict[int, Receipt] = {}
    refused: dict[int, DamagedShard] = {}
    try:
        names = sorted(os.listdir(receipts_dir))
    except FileNotFoundError:
        return found, refused
    for name in names:
        match = _RECEIPT_NAME.match(name)
        if not match:
            continue
        shard_id, where = int(match[1]), f"{receipts_dir}/{name}"
        try:
            receipt = read_receipt(where)
            if receipt is None:
                continue
            _require_place(receipt, array, fingerprint, shard_id, where)
        except DamagedShard as error:
            if on_damage == "raise":
                raise
            refused[shard_id] = error
        else:
            found[shard_id] = receipt
    return found, refused


def _require_place(receipt: Receipt, array: str, fingerprint: str, shard_id: int, where: str) -> None:
    for name, stored, expected in (
        ("array", receipt.array, array),
        ("fingerprint", receipt.fingerprint, fingerprint),
        ("shard_id", receipt.shard_id, shard_id),
    ):
        if stored != expected:
            raise _damaged(f"receipt of another place: {name} is {stored!r}, expected {expected!r}", where)
