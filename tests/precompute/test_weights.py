"""Devices, environment flags, and files of weights that somebody made to do harm."""

from __future__ import annotations

import json
import pickle
import struct
from typing import ClassVar

import pytest
import torch

from tfbind_store.errors import ConfigError, UnsafeFile, WeightsError
from tfbind_store.precompute.weights import environment_flag, pick_device, read_tensors, require_sizes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", True), ("true", True), (" YES ", True), ("on", True), ("0", False), ("false", False), ("no", False),
     ("", False), (None, False)],
)  # fmt: skip
def test_flags_are_booleans(monkeypatch, text, expected):
    monkeypatch.delenv("PROTEIN_EMBED_USE_CPU", raising=False)
    if text is not None:
        monkeypatch.setenv("PROTEIN_EMBED_USE_CPU", text)
    assert environment_flag("PROTEIN_EMBED_USE_CPU") is expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device = pick_device("auto", cpu_flag="PROTEIN_EMBED_USE_CPU")
    assert device.type == ("cpu" if expected else "cuda")
    assert pick_device("cuda:1", cpu_flag="PROTEIN_EMBED_USE_CPU") == torch.device("cuda:1")


def test_refusals(monkeypatch):
    monkeypatch.setenv("PROTEIN_EMBED_USE_CPU", "maybe")
    with pytest.raises(ConfigError, match="neither yes nor no"):
        pick_device("auto", cpu_flag="PROTEIN_EMBED_USE_CPU")
    with pytest.raises(ConfigError, match="no device is called 'gpu!'"):
        pick_device("gpu!")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU"):
        pick_device("cuda")


def test_a_pickle_that_runs_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "marker"), "w"))

    for number, content in enumerate((Trap(), {"a": torch.zeros(2), "b": Trap()}, [Trap()])):
        path = tmp_path / f"{number}.pt"
        torch.save(content, path)
        with pytest.raises(UnsafeFile, match="more than tensors"):
            read_tensors(path)
        path.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(WeightsError):
            read_tensors(path)
    assert not (tmp_path / "marker").exists()


def test_safetensors_with_a_hostile_header(tmp_path):
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 200 * 2**20))
        file.truncate(201 * 2**20)
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        read_tensors(path)
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    for header in (
        {"a": entry, "b": entry},
        {"a": {**entry, "data_offsets": [0, 2**40]}},
        {"a": {**entry, "shape": [2**40]}},
        {"a": {**entry, "data_offsets": [4, 20]}},
        {"a": {**entry, "dtype": "OBJ"}},
    ):
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
        with pytest.raises(WeightsError, match="not a whole safetensors file"):
            read_tensors(path)
    for content in (b"", b"\0" * 7, struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 4) + b"null"):
        path.write_bytes(content)
        with pytest.raises(WeightsError):
            read_tensors(path)


def test_the_floor_of_torch_has_the_fixes_of_weights_only():
    major, minor = map(int, torch.__version__.split(".")[:2])
    assert (major, minor) >= (2, 10)  # CVE-2025-32434, CVE-2026-24747


class TestSizes:
    TENSORS: ClassVar = {"a": torch.zeros(33, 8), "b": torch.zeros(32)}

    @pytest.mark.parametrize(
        "config",
        [
            {"hidden_size": 8, "vocab_size": 33, "intermediate_size": 16, "num_hidden_layers": 2, "heads": 10**9},
            {"encoder_embed_dim": 8, "max_positions": 1024, "layer_norm_eps": 1e-5, "use_layers": True},
        ],
    )
    def test_a_config_that_the_weights_fill(self, config):
        require_sizes(config, self.TENSORS, where="here")

    @pytest.mark.parametrize(
        ("name", "size"),
        [
            ("hidden_size", 10**6),
            ("vocab_size", 34),
            ("num_hidden_layers", 3),
            ("encoder_ffn_embed_dim", 7),
            ("max_position_embeddings", 10**9),
        ],
    )
    def test_a_config_that_asks_for_more_is_refused_before_it_gets_it(self, name, size):
        with pytest.raises(WeightsError, match=f"the config has {name} {size:,}"):
            require_sizes({name: size}, self.TENSORS, where="here")
