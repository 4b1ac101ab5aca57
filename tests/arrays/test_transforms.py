"""Frozen maps: the trunk's own numbers, and files from outside that are not what they say."""

import pickle

import numpy as np
import pytest
import torch

from tests.precompute.fast_models import random_enformer
from tfbind_store.arrays.transforms import (
    FOLDER,
    Pca,
    Pointwise,
    gelu,
    pack,
    read_transform,
    transform_path,
    transforms_of,
    write_transform,
)
from tfbind_store.errors import DamagedShard, SpecError, StoreMissing
from tfbind_store.precompute.window_options import _pointwise_of

AXES = {"axes": np.eye(2, 3), "mean": np.arange(3.0), "variance_share": np.array([0.7, 0.2])}


def test_comes_back_under_the_sha256_of_its_bytes_and_stays(tmp_path):
    content, sha256 = pack("pca", AXES)
    assert pack("pca", dict(reversed(AXES.items())))[1] == sha256
    assert write_transform(tmp_path, content) == sha256
    before = transform_path(tmp_path, sha256).stat()
    assert write_transform(tmp_path, content) == sha256
    assert transform_path(tmp_path, sha256).stat().st_mtime_ns == before.st_mtime_ns
    found = read_transform(tmp_path, sha256)
    assert found.keys() == AXES.keys()
    for name, tensor in AXES.items():
        np.testing.assert_array_equal(found[name], tensor.astype(np.float32))


def test_a_damaged_one_is_refused_and_written_again(tmp_path):
    content, sha256 = pack("pca", AXES)
    write_transform(tmp_path, content)
    path = transform_path(tmp_path, sha256)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedShard, match="does not hash to its name") as caught:
        read_transform(tmp_path, sha256)
    assert "run the command that made the array again" in caught.value.fix
    write_transform(tmp_path, content)
    assert path.read_bytes() == content


def test_one_that_is_gone_is_named(tmp_path):
    with pytest.raises(StoreMissing, match="is gone"):
        read_transform(tmp_path, "0" * 64)


@pytest.mark.parametrize("sha256", ["../../etc/passwd", "", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", 7, None])
def test_names_from_a_file_lead_nowhere_else(tmp_path, sha256):
    with pytest.raises(SpecError, match="is no sha256"):
        read_transform(tmp_path, sha256)


class Trap:
    def __reduce__(self):
        return (print, ("this must not run",))


EMPTY = b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "


@pytest.mark.parametrize("content", [pickle.dumps(Trap()), b"", b"\xff" * 64, EMPTY])
def test_no_code_is_run_and_odd_bytes_are_refused(tmp_path, content, capsys):
    sha256 = write_transform(tmp_path, content)
    with pytest.raises(DamagedShard, match=r"no safetensors|expected finite ones"):
        Pca.from_tensors(read_transform(tmp_path, sha256), source_dim=3, dim=2)
    assert capsys.readouterr().out == ""


def test_a_link_is_not_followed(tmp_path):
    content, sha256 = pack("pca", AXES)
    (tmp_path / "elsewhere").write_bytes(content)
    (tmp_path / FOLDER).mkdir()
    transform_path(tmp_path, sha256).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedShard, match="cannot be read"):
        read_transform(tmp_path, sha256)


@pytest.mark.parametrize(
    "change",
    [
        {"axes": np.eye(3, 3)},
        {"mean": np.arange(4.0)},
        {"more": np.zeros(1)},
        {"mean": np.array([0, np.nan, 1])},
    ],
)
def test_maps_that_do_not_fit_their_array_are_refused(change):
    tensors = {name: np.asarray(value, dtype=np.float32) for name, value in {**AXES, **change}.items()}
    with pytest.raises(DamagedShard, match="expected finite ones"):
        Pca.from_tensors(tensors, source_dim=3, dim=2)


def test_gelu_is_enformers_own_at_any_size():
    x = np.float32([-1e30, -88, -3, -0.5, 0, 0.5, 3, 88, 1e30])
    with np.errstate(over="ignore"):
        found = gelu(x.copy())
    expected = torch.from_numpy(x).double() * torch.sigmoid(1.702 * torch.from_numpy(x).double())
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-30)


def test_pointwise_is_the_trunks_last_layer(tmp_path):
    model = random_enformer(dim=96).eval()

    class Embedder:
        tap = "transformer"

    Embedder.model = model
    content, sha256, dim = _pointwise_of(Embedder())
    write_transform(tmp_path, content)
    layer = Pointwise.from_tensors(read_transform(tmp_path, sha256), stored_dim=96, dim=dim)
    x = np.random.default_rng(0).normal(size=(700, 96)).astype(np.float16) * np.float16(3)
    with torch.inference_mode():
        expected = model.double().final_pointwise(torch.from_numpy(x).double()[None])[0].numpy()
    found = layer(x)
    assert found.dtype == np.float16
    assert found.shape == (700, 192)
    off = np.sqrt(np.square(found - expected).mean() / np.square(expected).mean())
    assert off < 3e-4, "float16's own rounding is 2e-4"


def test_which_maps_a_spec_names():
    reading = {"pointwise": {"dim": 2, "sha256": "b" * 64}}
    assert transforms_of({}) == []
    assert transforms_of({"on_reading": reading, "projection": {"axes_sha256": "c" * 64}}) == ["b" * 64, "c" * 64]
    assert transforms_of({"projection": {"reconstruction_rms": 0.1}}) == []
