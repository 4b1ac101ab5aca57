"""Frozen maps that belong to arrays: what is applied as rows are read, or was applied before they were written.

A map lies in ``transforms/<sha256>.safetensors`` of its store, named by the sha256 of its bytes, which is part of
the array's spec: another file is another array, and a damaged one is refused. Two kinds: ``pointwise``, the last layer
of an Enformer trunk, so that half as many numbers can be stored; ``pca``, the axes onto which another array was
projected.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Shaped
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tfbind_store.arrays.on_reading import Reading
from tfbind_store.durable import REAL, FileSystem, make_directory, publish, read_regular
from tfbind_store.errors import DamagedShard, SpecError, StoreMissing

FOLDER = "transforms"
GELU_SLOPE = 1.702  # enformer-pytorch's GELU class: x * sigmoid(1.702 x)
MAX_BYTES = 2**30
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ROWS_AT_ONCE = 256
"""Rows that go through a map together: 3 MB of Enformer's widest in float32."""


def pack(kind: str, tensors: Mapping[str, Float32[np.ndarray, "..."]]) -> tuple[bytes, str]:
    """Return the file of a map and its sha256; the same numbers give the same bytes."""
    ordered = {name: np.ascontiguousarray(tensors[name], dtype=np.float32) for name in sorted(tensors)}
    content = save(ordered, metadata={"kind": kind})
    return content, hashlib.sha256(content).hexdigest()


def write_transform(store_path: Path, content: bytes, *, fs: FileSystem = REAL) -> str:
    """Put a map into a store, whole or not at all, and return its sha256; one that is there already stays."""
    sha256 = hashlib.sha256(content).hexdigest()
    path = transform_path(store_path, sha256)
    make_directory(path.parent, fs=fs)
    if not _is_whole(path, sha256):
        publish(path, [content], fs=fs)
    return sha256


def _is_whole(path: Path, sha256: str) -> bool:
    try:
        return hashlib.sha256(read_regular(path, max_bytes=MAX_BYTES)).hexdigest() == sha256
    except OSError:
        return False


def transform_path(store_path: Path, sha256: str) -> Path:
    """Return where a map lies.

    Raises
    ------
    SpecError
        If `sha256` is none: it comes from a file, and must not name another place.
    """
    if not _SHA256.fullmatch(str(sha256)):
        raise SpecError(f"{str(sha256)[:80]!r} is no sha256 of a transform", where=str(store_path / FOLDER))
    return store_path / FOLDER / f"{sha256}.safetensors"


def read_transform(store_path: Path, sha256: str) -> dict[str, Float32[np.ndarray, "..."]]:
    """Return the tensors of a map.

    Raises
    ------
    StoreMissing
        If it is not there.
    DamagedShard
        If its bytes are not those that the array's spec names.
    """
    path = transform_path(store_path, sha256)
    fix = "put the file back from a copy, or run the command that made the array again"
    try:
        content = read_regular(path, max_bytes=MAX_BYTES)
    except FileNotFoundError as error:
        raise StoreMissing("a map that the array is read with is gone", where=str(path), fix=fix) from error
    except OSError as error:
        raise DamagedShard(f"a map of the array cannot be read: {error.strerror}", where=str(path), fix=fix) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedShard("a map of the array does not hash to its name", where=str(path), fix=fix)
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedShard(f"a map of the array is no safetensors file: {error}", where=str(path), fix=fix) from error
    return {name: np.asarray(value, dtype=np.float32) for name, value in tensors.items()}


def transforms_of(identity: Mapping[str, Any]) -> list[str]:
    """Return the sha256 of every map that a spec's identity names."""
    projection = identity.get("projection")
    axes = projection.get("axes_sha256") if isinstance(projection, Mapping) else None
    return [sha256 for sha256 in (Reading.of(identity).pointwise_sha256, axes) if sha256]


def _require_shapes(tensors: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], kind: str) -> None:
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != dict(wanted) or not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise DamagedShard(f"a {kind} has tensors {found}, expected finite ones {dict(wanted)}", where=kind)


@dataclass(frozen=True)
class Pointwise:
    """BatchNorm in eval mode, GELU, a 1x1 convolution, GELU: the last layer of an Enformer trunk."""

    norm_scale: Float32[np.ndarray, " c"]
    norm_offset: Float32[np.ndarray, " c"]
    weight: Float32[np.ndarray, "d c"]
    bias: Float32[np.ndarray, " d"]

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], *, stored_dim: int, dim: int) -> Pointwise:
        """Return the layer of a file, refusing one that does not fit its array."""
        norm = (stored_dim,)
        wanted = {"bias": (dim,), "norm_offset": norm, "norm_scale": norm, "weight": (dim, stored_dim)}
        _require_shapes(tensors, wanted, "pointwise layer")
        return cls(**tensors)

    def __call__(self, values: Shaped[np.ndarray, "n c"]) -> Float16[np.ndarray, "n d"]:
        """Return what the trunk would have given for rows of its transformer's output."""
        out = np.empty((len(values), len(self.bias)), dtype=np.float16)
        with np.errstate(over="ignore"):  # exp of a large number: the sigmoid is zero
            for at in range(0, len(values), _ROWS_AT_ONCE):
                rows = values[at : at + _ROWS_AT_ONCE].astype(np.float32)
                rows *= self.norm_scale
                rows += self.norm_offset
                mixed = gelu(rows) @ self.weight.T
                mixed += self.bias
                out[at : at + _ROWS_AT_ONCE] = gelu(mixed)
        return out


def gelu(x: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Return ``x * sigmoid(1.702 x)``, in place of `x`."""
    gate = np.multiply(x, np.float32(-GELU_SLOPE))
    np.exp(gate, out=gate)
    gate += 1
    x /= gate
    return x


@dataclass(frozen=True)
class Pca:
    """Axes that span the directions of the largest variance, and the mean that they start from."""

    mean: Float32[np.ndarray, " c"]
    axes: Float32[np.ndarray, "d c"]
    """Orthonormal rows, each with the same share of the variance."""
    variance_share: Float32[np.ndarray, " d"]
    """Of the sample's variance, along the principal axes of the same space, the largest first."""

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], *, source_dim: int, dim: int) -> Pca:
        """Return the axes of a file, refusing those that do not fit their array."""
        wanted = {"axes": (dim, source_dim), "mean": (source_dim,), "variance_share": (dim,)}
        _require_shapes(tensors, wanted, "projection")
        return cls(**tensors)

    def tensors(self) -> dict[str, Float32[np.ndarray, "..."]]:
        """Return what goes into the file."""
        return {"axes": self.axes, "mean": self.mean, "variance_share": self.variance_share}

    def __call__(self, values: Shaped[np.ndarray, "n c"]) -> Float32[np.ndarray, "n d"]:
        """Return rows on the axes."""
        return np.asarray((values.astype(np.float32) - self.mean) @ self.axes.T)

    def back(self, projected: Shaped[np.ndarray, "n d"]) -> Float32[np.ndarray, "n c"]:
        """Return what the axes keep of the rows."""
        return np.asarray(projected.astype(np.float32) @ self.axes + self.mean)
