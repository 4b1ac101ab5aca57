"""Proteins whose embeddings somebody else computed, such as AlphaFold2's single representation.

A folder holds one file per protein, named by the sha256 or md5 of its sequence (upper case, as the catalog has it) with
``.safetensors``, ``.npy``, ``.npz`` or ``.h5``; an archive (``.safetensors``, ``.npz``, ``.h5``) holds arrays under
these names. Each is ``[length, dim]``: both are checked before anything is read. Pickles are refused. What is missing
fails one by one and is listed; add the files and run the same command again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open

from tfbind_store.errors import ConfigError, DependencyError, ProteinError, TfbindError, UnsafeFile, WeightsError
from tfbind_store.precompute.alphabet import require_list, residues
from tfbind_store.precompute.embedder import SequenceEmbedding, read_options
from tfbind_store.spec import EmbeddingSpec

SUFFIXES = (".safetensors", ".npy", ".npz", ".h5")
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin")
ALPHAFOLD_DIM = 384
"""Width of AlphaFold2's single representation (Jumper et al. 2021)."""


@dataclass(frozen=True, kw_only=True)
class ImportedOptions:
    """Where the files are and what they hold."""

    checkpoint: str | None = None
    """Folder, or archive."""
    model: str = "alphafold2"
    """What computed them; the spec has nothing else to know them by."""
    dim: int = ALPHAFOLD_DIM
    """Numbers per residue."""
    long_proteins: Literal["all", "first"] = "all"
    """Whether the files hold ``all`` residues, or the ``first`` `window` of longer proteins."""
    window: int = 2500


def from_options(options: Mapping[str, Any]) -> ImportedEmbedder:
    """Return the imported embeddings for the registry.

    Raises
    ------
    ConfigError
        If no place is given.
    WeightsError
        If there is nothing at it.
    UnsafeFile
        If there are only pickles.
    """
    choice = read_options(ImportedOptions, options, name="imported")
    if choice.checkpoint is None or choice.dim < 1 or choice.window < 1:
        raise ConfigError(
            "imported embeddings need a place, a width and a window",
            where="options of embedder imported",
            fix="--checkpoint FOLDER --set model=alphafold2 --set dim=384",
        )
    return ImportedEmbedder(Path(choice.checkpoint).expanduser(), choice)


class ImportedEmbedder:
    """Embeddings out of files; see the module."""

    def __init__(self, place: Path, options: ImportedOptions) -> None:
        self.options = options
        self.place = place
        if not place.exists():
            raise WeightsError("no such folder or archive", where=str(place))
        self._is_folder = place.is_dir()
        files = list(place.iterdir()) if self._is_folder else [place]
        if not any(file.suffix in SUFFIXES for file in files):
            raise _nothing_readable(place, files)

    def spec(self) -> EmbeddingSpec:
        """Return the spec: what computed the numbers is the user's word."""
        policy = "all residues" if self.options.long_proteins == "all" else f"first {self.options.window} residues"
        identity = {"class": "imported", "model": self.options.model, "length_policy": policy}
        return EmbeddingSpec(kind="proteins", embedder="imported", dim=self.options.dim, identity=identity)

    def rows_for(self, length: int) -> int:
        """Return how many rows a protein of `length` residues has."""
        return length if self.options.long_proteins == "all" else min(length, self.options.window)

    def embed(self, sequences: Sequence[str | Sequence[int] | np.ndarray]) -> Iterator[SequenceEmbedding]:
        """Yield one result per sequence, in the order given.

        Raises
        ------
        ProteinError
            If a sequence has no array, or one of another shape, or one that is not finite.
        """
        require_list(sequences)
        for sequence in sequences:
            letters = residues(sequence)
            shape = (self.rows_for(len(letters)), self.options.dim)
            yield SequenceEmbedding(self._read(letters, shape), shape[0] < len(letters))

    def _read(self, letters: str, shape: tuple[int, int]) -> Float32[np.ndarray, "length dim"]:
        names = [hashlib.sha256(letters.encode()).hexdigest(), hashlib.md5(letters.encode()).hexdigest()]
        try:
            for name in names:
                file = next((f for s in SUFFIXES if (f := self.place / f"{name}{s}").is_file()), None)
                found = read_array(file or self.place, name, shape) if file or not self._is_folder else None
                if found is not None:
                    return found
        except TfbindError:
            raise
        except (SafetensorError, OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise ProteinError(f"its array cannot be read: {error}", where=str(self.place)) from error
        raise ProteinError(
            f"no embedding of this sequence (sha256 {names[0][:12]}…, md5 {names[1]})",
            where=str(self.place),
            fix="compute it, name it by one of these, and run the same command again",
        )


def read_array(path: Path, name: str, shape: tuple[int, int]) -> Float32[np.ndarray, "length dim"] | None:
    """Return one array of a file, None if an archive has none of that name; shape and type are checked before reading.

    Raises
    ------
    ProteinError
        If the shape is another.
    UnsafeFile
        If the file is a pickle, or an array holds Python objects.
    """
    readers = {".npy": _from_npy, ".npz": _from_npz, ".safetensors": _from_safetensors, ".h5": _from_h5}
    if path.suffix not in readers:
        raise _nothing_readable(path, [path])
    found = readers[path.suffix](path, name, shape)
    return None if found is None else np.ascontiguousarray(found, dtype=np.float32)


def _from_npy(path: Path, name: str, shape: tuple[int, int]) -> np.ndarray:
    with open(path, "rb") as file:
        return _npy(file, shape, where=str(path))


def _from_npz(path: Path, name: str, shape: tuple[int, int]) -> np.ndarray | None:
    with zipfile.ZipFile(path) as archive:
        member = _pick([entry.removesuffix(".npy") for entry in archive.namelist()], name, path)
        if member is None:
            return None
        with archive.open(f"{member}.npy") as file:
            return _npy(io.BufferedReader(file), shape, where=f"{path}: {member}")  # type: ignore[type-var]


def _npy(file: BinaryIO | io.BufferedReader[Any], shape: tuple[int, int], *, where: str) -> np.ndarray:
    """Read one ``.npy``: its header first, then exactly the bytes that the shape takes."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    found, is_fortran, dtype = read_header(file)
    _check(found, dtype, shape, where=where)
    size = shape[0] * shape[1] * dtype.itemsize
    content = file.read(size)
    if len(content) != size:
        raise ProteinError(f"its array is cut short: {len(content):,} of {size:,} bytes", where=where)
    return np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if is_fortran else "C")


def _from_safetensors(path: Path, name: str, shape: tuple[int, int]) -> np.ndarray | None:
    with safe_open(str(path), framework="numpy") as file:
        member = _pick(list(file.keys()), name, path)
        if member is None:
            return None
        piece = file.get_slice(member)
        if piece.get_dtype() not in ("F16", "F32", "F64"):
            raise ProteinError(f"its array is of type {piece.get_dtype()}, not F16, F32 or F64", where=str(path))
        _check(tuple(piece.get_shape()), np.dtype(np.float32), shape, where=str(path))
        return np.asarray(file.get_tensor(member))


def _from_h5(path: Path, name: str, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        import h5py
    except ImportError as error:
        fix = "pip install 'tfbind-store[h5]', or convert to safetensors or npz"
        raise DependencyError("HDF5 files need h5py", where=str(path), fix=fix) from error
    with h5py.File(path, "r") as file:
        member = _pick(list(file), name, path)
        if member is None:
            return None
        if not isinstance(file.get(member, getlink=True), h5py.HardLink):
            raise UnsafeFile("it links to another file", where=f"{path}: {member}", fix="copy the data into the file")
        data = file[member]
        if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
            raise UnsafeFile("no plain dataset", where=f"{path}: {member}")
        _check(data.shape, data.dtype, shape, where=f"{path}: {member}")
        return np.asarray(data[()])


def _pick(members: Sequence[str], name: str, path: Path) -> str | None:
    """Return the member of a file that is this protein's: the one of its name, or the only one of its own file."""
    if name in members:
        return name
    return members[0] if len(members) == 1 and path.stem == name else None


def _check(found: tuple[int, ...], dtype: np.dtype[Any], shape: tuple[int, int], *, where: str) -> None:
    if dtype.hasobject:
        raise UnsafeFile("refused: the array holds Python objects", where=where, fix="write plain numbers")
    if dtype.kind != "f":
        raise ProteinError(f"its array is of type {dtype}, not floating point", where=where)
    if tuple(found) != shape:
        raise ProteinError(f"its array has shape {tuple(found)}, the protein needs {shape}", where=where)


def _nothing_readable(place: Path, files: Sequence[Path]) -> WeightsError:
    with contextlib.suppress(StopIteration):
        odd = next(file for file in files if file.suffix in PICKLES)
        return UnsafeFile(
            f"refused: {odd.name} is a pickle and could run code",
            where=str(place),
            fix="where you trust it: torch.load(file, weights_only=True), then safetensors.torch.save_file",
        )
    return WeightsError(f"no {', '.join(SUFFIXES)} here", where=str(place))
