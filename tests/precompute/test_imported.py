"""Embeddings out of files: every format, names by hash, and what must be refused."""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tfbind_store.errors import ConfigError, DependencyError, ProteinError, UnsafeFile, WeightsError
from tfbind_store.precompute.embedder import make_sequence_embedder

PROTEIN, OTHER = "MKVLAAGIVG", "MSTNP"
DIM = 6


def values(sequence: str) -> np.ndarray:
    seed = int(hashlib.md5(sequence.encode()).hexdigest()[:8], 16)
    return np.random.default_rng(seed).normal(size=(len(sequence), DIM)).astype(np.float32)


def sha(sequence: str) -> str:
    return hashlib.sha256(sequence.encode()).hexdigest()


def md5(sequence: str) -> str:
    return hashlib.md5(sequence.encode()).hexdigest()


def make(place, **options):
    return make_sequence_embedder("imported", {"checkpoint": str(place), "dim": DIM, **options})


def rows(place, sequence=PROTEIN, **options) -> np.ndarray:
    return next(iter(make(place, **options).embed([sequence]))).values


def write(path, arrays: dict[str, np.ndarray]):
    if path.suffix == ".npy":
        np.save(path, next(iter(arrays.values())))
    elif path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    elif path.suffix == ".safetensors":
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    else:
        h5py = pytest.importorskip("h5py", reason="h5py is not installed")
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".h5"])
@pytest.mark.parametrize("named", [sha, md5])
def test_one_file_per_protein(tmp_path, suffix, named):
    write(tmp_path / f"{named(PROTEIN)}{suffix}", {"single": values(PROTEIN)})
    np.testing.assert_array_equal(rows(tmp_path), values(PROTEIN))
    np.testing.assert_array_equal(rows(tmp_path, PROTEIN.lower() + "*"), values(PROTEIN))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".h5"])
def test_one_archive(tmp_path, suffix):
    write(tmp_path / f"all{suffix}", {sha(PROTEIN): values(PROTEIN), md5(OTHER): values(OTHER)})
    found = list(make(tmp_path / f"all{suffix}").embed([PROTEIN, OTHER]))
    np.testing.assert_array_equal(found[0].values, values(PROTEIN))
    np.testing.assert_array_equal(found[1].values, values(OTHER))
    with pytest.raises(ProteinError, match="no embedding of this sequence"):
        rows(tmp_path / f"all{suffix}", "MMM")


def test_an_archive_of_one_array_is_not_taken_for_any_protein(tmp_path):
    write(tmp_path / "all.npz", {sha(PROTEIN): values(PROTEIN)})
    with pytest.raises(ProteinError, match="no embedding"):
        rows(tmp_path / "all.npz", OTHER)


def test_column_order_and_half_precision(tmp_path):
    np.save(tmp_path / f"{sha(PROTEIN)}.npy", np.asfortranarray(values(PROTEIN).astype(np.float16)))
    np.testing.assert_array_equal(rows(tmp_path), values(PROTEIN).astype(np.float16).astype(np.float32))


def test_first_residues_of_long_proteins(tmp_path):
    write(tmp_path / f"{sha(PROTEIN)}.npy", {"x": values(PROTEIN)[:4]})
    embedder = make(tmp_path, long_proteins="first", window=4)
    (found,) = embedder.embed([PROTEIN])
    assert (found.values.shape, found.truncated, embedder.rows_for(10)) == ((4, DIM), True, 4)
    with pytest.raises(ProteinError, match=r"shape \(4, 6\), the protein needs \(10, 6\)"):
        rows(tmp_path)


@pytest.mark.parametrize("shape", [(10, 7), (9, 6), (11, 6), (1, 10, 6), (60,)])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".h5"])
def test_another_shape_is_refused(tmp_path, suffix, shape):
    write(tmp_path / f"{sha(PROTEIN)}{suffix}", {"x": np.zeros(shape, dtype=np.float32)})
    with pytest.raises(ProteinError, match="has shape"):
        rows(tmp_path)


class TestAttacks:
    @pytest.fixture
    def trap(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return (open, (str(tmp_path / "marker"), "w"))

        return Trap()

    def test_pickles(self, tmp_path, trap):
        torch.save(trap, tmp_path / f"{md5(PROTEIN)}.pt")
        with pytest.raises(UnsafeFile, match="pickle"):
            make(tmp_path)
        with pytest.raises(UnsafeFile, match="pickle"):
            make(tmp_path / f"{md5(PROTEIN)}.pt")
        assert not (tmp_path / "marker").exists()

    @pytest.mark.parametrize("suffix", [".npy", ".npz"])
    def test_arrays_of_objects(self, tmp_path, trap, suffix):
        write(tmp_path / f"{sha(PROTEIN)}{suffix}", {"x": np.array([[trap] * DIM] * 10, dtype=object)})
        with pytest.raises(UnsafeFile, match="Python objects"):
            rows(tmp_path)
        assert not (tmp_path / "marker").exists()

    def test_a_header_of_200_mb(self, tmp_path):
        path = tmp_path / f"{sha(PROTEIN)}.safetensors"
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", 200 * 2**20))
            file.truncate(201 * 2**20)
        with pytest.raises(ProteinError, match="cannot be read"):
            rows(tmp_path)

    def test_overlapping_offsets(self, tmp_path):
        entry = {"dtype": "F32", "shape": [10, DIM], "data_offsets": [0, 240]}
        header = json.dumps({"a": entry, "b": entry}).encode()
        (tmp_path / f"{sha(PROTEIN)}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(240))
        with pytest.raises(ProteinError, match="cannot be read"):
            rows(tmp_path)

    def test_an_npy_that_claims_a_terabyte(self, tmp_path):
        with open(tmp_path / f"{sha(PROTEIN)}.npy", "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, DIM)}
            np.lib.format.write_array_header_1_0(file, header)
        with pytest.raises(ProteinError, match="has shape"):
            rows(tmp_path)

    def test_a_torn_npy(self, tmp_path):
        write(tmp_path / "x.npy", {"x": values(PROTEIN)})
        (tmp_path / f"{sha(PROTEIN)}.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-4])
        with pytest.raises(ProteinError, match="cut short"):
            rows(tmp_path)
        for content in (b"", b"\x93NUMPY", bytes(200)):
            (tmp_path / f"{sha(PROTEIN)}.npy").write_bytes(content)
            with pytest.raises(ProteinError, match="cannot be read"):
                rows(tmp_path)

    def test_an_h5_that_links_elsewhere(self, tmp_path):
        h5py = pytest.importorskip("h5py", reason="h5py is not installed")
        write(tmp_path / "other.h5", {"x": values(PROTEIN)})
        with h5py.File(tmp_path / "all.h5", "w") as file:
            file[sha(PROTEIN)] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x")
        with pytest.raises(UnsafeFile, match="links"):
            rows(tmp_path / "all.h5")


def test_places(tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match="no such folder"):
        make(tmp_path / "absent")
    with pytest.raises(WeightsError, match=r"no \.safetensors"):
        make(tmp_path)
    for options in ({"checkpoint": None}, {"dim": 0}, {"window": 0}):
        with pytest.raises(ConfigError):
            make(tmp_path, **options)
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "h5py":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    (tmp_path / "all.h5").write_bytes(b"")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError, match="h5py"):
        rows(tmp_path / "all.h5")


def test_model_and_policy_are_the_identity(tmp_path):
    write(tmp_path / "all.npz", {"x": values(PROTEIN)})
    spec = make(tmp_path / "all.npz").spec()
    assert [d.field for d in spec.differences(make(tmp_path / "all.npz", model="other").spec())] == ["identity.model"]
