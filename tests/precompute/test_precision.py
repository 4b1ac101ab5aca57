"""What a fast precision costs stands in the receipts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.precompute.small import Watched, make_store
from tfbind_store.cli import main
from tfbind_store.precompute import precision
from tfbind_store.precompute import run as run_module
from tfbind_store.precompute.embedder import WindowEmbedding, make_window_embedder
from tfbind_store.precompute.precision import FIELD, largest_error
from tfbind_store.precompute.run import embed_windows

ENFORMER = {"dim": 48, "depth": 1, "heads": 4, "attn_dim_key": 8, "device": "cpu"}


class Coarse(Watched):
    """The toy, off by a hundredth unless it is asked to be exact."""

    precision = "bfloat16"

    def __init__(self, *, off: float = 0.01, trouble: Exception | None = None) -> None:
        super().__init__()
        self.off, self.trouble = off, trouble

    def embed(self, windows, codes, tiling):
        for window, values in super().embed(windows, codes, tiling):
            yield WindowEmbedding(window, values * np.float32(1 + self.off))

    def exact(self):
        if self.trouble:
            raise self.trouble
        return Coarse(off=0.0)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "WINDOWS_PER_SHARD", 4)
    return make_store(tmp_path)


def said(store, name="embeddings/windows"):
    return {shard: r.provenance.get(FIELD) for shard, r in store.array(name).receipts().items()}


def test_the_first_shard_says_how_far_a_canary_is_off(store):
    report = embed_windows(store, Coarse())
    assert said(store) == {
        0: {"window": 0, "precision": "bfloat16", "relative_rms": 0.01, "max_abs": pytest.approx(0.7, abs=0.7)},
        1: None,
        2: None,
    }
    assert report.precision_rms == 0.01


def test_and_so_does_every_sixteenth(store, monkeypatch):
    monkeypatch.setattr(precision, "EVERY_SHARDS", 2)
    embed_windows(store, Coarse())
    assert [shard for shard, error in said(store).items() if error] == [0, 2]


def test_the_first_of_some_loci_is_one_too(store):
    from tfbind_store.loci import Locus

    embed_windows(store, Coarse(), loci=[Locus("a", 4200, 4300)])
    (error,) = said(store).values()
    assert error["window"] == 8
    embed_windows(store, Coarse(), loci=[Locus("a", 2100, 2101)])
    assert [shard for shard, error in said(store).items() if error] == [2]


def test_float32_has_nothing_to_say(store):
    assert embed_windows(store, make_window_embedder("enformer", ENFORMER)).precision_rms is None
    assert not any(said(store).values())


def test_a_trunk_in_bfloat16_is_measured_against_itself_in_float32(store):
    torch.set_num_threads(1)
    options = {**ENFORMER, "precision": "bfloat16", "shift_bp": 3}
    report = embed_windows(store, make_window_embedder("enformer", options))
    exact = make_window_embedder("enformer", {**ENFORMER, "shift_bp": 3})
    genome = store.genome
    (there,) = exact.embed([0], lambda locus: genome.codes(*locus), store.tiling)
    stored = store.array("embeddings/windows").row(0).astype(np.float64)
    off = np.sqrt(np.square(stored - there.values).mean() / np.square(there.values).mean())
    assert 1e-3 < report.precision_rms < 0.05
    assert report.precision_rms == pytest.approx(off, rel=0.02), "but for float16's own rounding"


def test_a_canary_that_cannot_be_had_stops_nobody(store):
    report = embed_windows(store, Coarse(trouble=RuntimeError("CUDA out of memory")))
    assert report.is_complete
    assert report.precision_rms is None


def test_receipts_that_others_wrote_are_read_with_care(store):
    embed_windows(store, Coarse())
    receipts = store.array("embeddings/windows").receipts()
    from dataclasses import replace

    odd = [replace(receipts[1], provenance={FIELD: value}) for value in (None, [], {"relative_rms": "0.5"}, {})]
    assert largest_error(odd) is None
    assert largest_error([*receipts.values(), *odd]) == 0.01


def test_the_command_line_says_it(store):
    words = ["embed", str(store.path), "windows", "--set", "precision=bfloat16"]
    words += [part for key, value in ENFORMER.items() if key != "device" for part in ("--set", f"{key}={value}")]
    result = CliRunner().invoke(main, [*words, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "off float32 (rms, on windows embedded in both)" in result.stdout
