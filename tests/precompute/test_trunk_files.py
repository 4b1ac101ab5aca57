"""A trunk's files: what a disk that takes no more leaves behind, and folders that strangers made."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tfbind_store.errors import NoSpace, WeightsError
from tfbind_store.precompute.trunk_files import CARD_FORMAT, build_trunk, load_trunk, save_trunk

SIZES = {"dim": 24, "depth": 1, "heads": 2, "attn_dim_key": 6, "dim_divisible_by": 4, "output_heads": {}}


def test_a_write_that_fails_says_so_and_the_older_trunk_stays(tmp_path):
    trunk = build_trunk(SIZES, where="here")
    save_trunk(trunk, tmp_path, None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(NoSpace, match="larger than this disk, or a limit"):
            save_trunk(trunk, tmp_path, None, notes={"new": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture
def foreign(tmp_path):
    """Return a trunk's folder as enformer-pytorch writes it, config apart from the weights."""
    save_trunk(build_trunk(SIZES, where="here"), tmp_path, None)
    weights = tmp_path / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    return tmp_path


class TestOfStrangers:
    @pytest.mark.parametrize(
        ("name", "value"),
        [("depth", 10**9), ("depth", 2**63), ("depth", -1), ("depth", "1"), ("num_downsamples", 10**9), ("dim", 10**9),
         ("dim", None), ("heads", 10**9), ("heads", 0), ("attn_dim_key", 10**9), ("dim_divisible_by", 10**6),
         ("dim_divisible_by", 0), ("depth", 2), ("dim", 48)],
    )  # fmt: skip
    @pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
    def test_a_config_of_another_size_is_refused_before_it_takes_memory(self, foreign, name, value):
        config = json.loads((foreign / "config.json").read_text())
        load_trunk(foreign)
        (foreign / "config.json").write_text(json.dumps({**config, name: value}))
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + (1 << 29), hard))
        try:
            with pytest.raises(WeightsError):
                load_trunk(foreign)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    @pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '"dim"', "{}"])
    def test_a_config_that_is_none(self, foreign, text):
        (foreign / "config.json").write_text(text)
        with pytest.raises(WeightsError, match=r"not valid JSON|no Enformer config"):
            load_trunk(foreign)

    @pytest.mark.parametrize(
        ("name", "number"),
        [("stem.0.weight", float("nan")), ("stem.0.weight", float("inf")), ("stem.1.fn.0.running_var", -1.0)],
    )
    def test_numbers_that_no_training_leaves(self, foreign, name, number):
        weights = foreign / "model.safetensors"
        tensors = load_file(weights)
        tensors[name].view(-1)[3] = number
        save_file(tensors, weights, metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=f"{name} holds numbers"):
            load_trunk(foreign)

    @pytest.mark.parametrize(
        "card",
        ["", "[]", "7", "[" * 100_000, "{}", '{"config": 7, "trained_on": null, "notes": {}}',
         '{"config": {}, "trained_on": {"factors": 7, "chromosomes": [], "biotypes": []}, "notes": {}}',
         '{"config": {}, "trained_on": 7, "notes": {}}', '{"config": {}, "trained_on": null, "notes": 7}'],
    )  # fmt: skip
    def test_a_card_that_is_none(self, foreign, card):
        weights = foreign / "model.safetensors"
        save_file(load_file(weights), weights, metadata={"format": "pt", CARD_FORMAT: card})
        with pytest.raises(WeightsError, match="card"):
            load_trunk(foreign)

    def test_a_tensor_of_another_shape(self, foreign):
        weights = foreign / "model.safetensors"
        tensors = load_file(weights)
        tensors["stem.0.bias"] = torch.zeros(7)
        save_file(tensors, weights, metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=r"stem.0.bias is \[7\], not \[12\]"):
            load_trunk(foreign)
