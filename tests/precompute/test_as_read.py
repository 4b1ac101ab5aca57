"""What a head reads of the store, it can be given for any sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.precompute.small import make_store
from tfbind_store.errors import SpecError, WeightsError
from tfbind_store.precompute.as_read import embedder_as_read
from tfbind_store.precompute.embedder import make_window_embedder
from tfbind_store.precompute.project import ProjectConfig, project_array
from tfbind_store.precompute.run import embed_windows

ENFORMER = {"dim": 48, "depth": 1, "heads": 4, "attn_dim_key": 8, "device": "cpu"}
HALVED = {**ENFORMER, "tap": "transformer", "final_on_reading": True}
WINDOWS = [0, 3, 4, 11]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    torch.set_num_threads(1)
    store = make_store(tmp_path_factory.mktemp("as_read"))
    embed_windows(store, make_window_embedder("enformer", ENFORMER), name="full")
    embed_windows(store, make_window_embedder("enformer", {**HALVED, "int8": True}), name="quarter")
    embed_windows(store, make_window_embedder("toy"), name="toy")
    project_array(store, "embeddings/full", ProjectConfig(dim=7))
    project_array(store, "embeddings/quarter", ProjectConfig(dim=5, int8=True))
    project_array(store, "embeddings/full-pca7", ProjectConfig(int8=True))
    project_array(store, "embeddings/toy", ProjectConfig(dim=3))
    return store


@pytest.mark.parametrize(
    ("label", "settings", "bound"),
    [
        ("full", ENFORMER, 1e-3),
        ("quarter", ENFORMER, 1e-2),
        ("full-pca7", ENFORMER, 1e-3),
        ("quarter-pca5-int8", ENFORMER, 2e-2),
        ("full-pca7-int8", ENFORMER, 1e-2),
        ("toy-pca3", None, 1e-3),
    ],
)
def test_bases_of_the_genome_give_what_the_array_holds(store, label, settings, bound):
    array = store.array(f"embeddings/{label}")
    embedder = embedder_as_read(store, f"embeddings/{label}", settings=settings)
    assert embedder.geometry.dim == array.shape[-1]
    assert embedder.spec(store.meta.genome, store.grid).dim <= array.shape[-1]
    found = list(embedder.embed(WINDOWS, lambda locus: store.genome.codes(*locus), store.tiling))
    assert [window for window, _ in found] == WINDOWS
    values = np.stack([values for _, values in found]).astype(np.float64)
    expected = np.stack([array.row(window) for window in WINDOWS]).astype(np.float64)
    assert np.sqrt(np.square(values - expected).mean() / np.square(expected).mean()) < bound


def test_a_changed_base_changes_the_numbers(store):
    def changed(locus):
        codes = store.genome.codes(*locus).copy()
        codes[len(codes) // 2] = (codes[len(codes) // 2] + 1) % 4
        return codes

    embedder = embedder_as_read(store, "embeddings/full-pca7", settings=ENFORMER)
    ((_, before),) = embedder.embed([3], lambda locus: store.genome.codes(*locus), store.tiling)
    ((_, after),) = embedder.embed([3], changed, store.tiling)
    assert np.abs(before - after).max() > 1e-3


def test_without_the_model_or_with_another_it_says_so(store):
    with pytest.raises(WeightsError, match="needs its model again"):
        embedder_as_read(store, "embeddings/full-pca7")
    with pytest.raises(SpecError, match="this run asks for"):
        embedder_as_read(store, "embeddings/quarter-pca5-int8", settings={**ENFORMER, "seed": 1})
