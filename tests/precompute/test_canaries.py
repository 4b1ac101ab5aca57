"""Canaries of proteins and texts: numbers that are another model's are found although every hash fits."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from tests.precompute.small import make_store
from tests.precompute.test_rows import PROTEINS, add_factors, add_proteins, add_texts
from tfbind_store.arrays.receipts import receipt_path
from tfbind_store.arrays.sharded import WindowState, publish_shard
from tfbind_store.keeping.repair import repair_store
from tfbind_store.keeping.verify import Kind, verify_store
from tfbind_store.precompute import rows as rows_module
from tfbind_store.precompute.canaries import Model, check_canaries
from tfbind_store.precompute.embedder import make_sequence_embedder, make_text_embedder
from tfbind_store.precompute.rows import embed_contexts, embed_factors
from tfbind_store.store.folder import Store

ESM = {"num_layers": 2, "embed_dim": 16, "attention_heads": 2, "seed": 3, "window": 300, "overlap": 20, "layer": 1}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    store = make_store(tmp_path_factory.mktemp("template"))
    with store.writer() as catalog:
        add_proteins(catalog, PROTEINS)
        add_factors(catalog)
        catalog.execute("INSERT INTO data.biotypes VALUES (0, 'b0', 'b0', NULL, '{}'), (1, 'b1', 'b1', NULL, '{}')")
        add_texts(catalog, {0: "yeast in YPD", 1: "yeast, heat shock"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "LEAST_PROTEIN_ROWS", 256)  # so that a protein reaches into several shards
        patch.setattr(rows_module, "PROTEIN_SHARD_BYTES", 1)
        embed_factors(store, make_sequence_embedder("composition", {"widths": [1, 9, 0]}))
    embed_contexts(store, make_text_embedder("hashed", {"dim": 16, "shortest": 2}))
    return store.path


@pytest.fixture
def store(template, tmp_path):
    shutil.copytree(template, tmp_path / "store")
    return Store.open(tmp_path / "store")


def publish_anew(store, name, shard_id, change):
    """Publish a shard with other numbers: label, hashes and receipt fit each other."""
    array = store.array(name)
    layout = array.layout
    receipt = array.receipts()[shard_id]
    first = shard_id * layout.shard_rows
    data = np.full((layout.rows_in(shard_id), *layout.row_shape), np.nan, dtype=layout.dtype)
    ok = [state is WindowState.ok for state in receipt.states]
    for place in np.flatnonzero(np.repeat(ok, layout.window_rows))[: len(data)]:
        data[place] = array.row(first + int(place))
    for path in (layout.shard_path(shard_id), receipt_path(layout.receipts_dir, shard_id)):
        path.unlink()
    publish_shard(layout, shard_id, change(data), list(receipt.states), provenance=receipt.provenance)


def test_embedders_without_weights_are_made_again_from_the_spec(store):
    assert check_canaries(store, n_canaries=5) == ([], 5, [])  # three proteins, two texts


@pytest.mark.parametrize(("name", "shard"), [("proteins/composition", 1), ("contexts/hashed", 0)])
def test_numbers_of_another_model_are_found_set_aside_and_computed_again(store, name, shard):
    publish_anew(store, name, shard, lambda data: data[:, ::-1].copy())
    assert verify_store(store, deep=True).is_clean
    problems, _, _ = check_canaries(store)
    assert {(problem.kind, problem.array, problem.shard) for problem in problems} == {(Kind.canary, name, shard)}
    report = dataclasses.replace(verify_store(store), problems=tuple(problems))
    assert repair_store(store, report).n_lost > 0
    embed_factors(store, make_sequence_embedder("composition", {"widths": [1, 9, 0]}))
    embed_contexts(store, make_text_embedder("hashed", {"dim": 16, "shortest": 2}))
    assert check_canaries(store)[0] == []


def test_models_with_weights_are_given_by_array(store):
    embed_factors(store, make_sequence_embedder("esm", ESM))
    problems, n, notes = check_canaries(store)
    assert (problems, n) == ([], 5)
    assert notes == ["proteins/esm: canaries need the model, give it with --checkpoint proteins/esm=PLACE"]
    own = {key: ESM[key] for key in ("num_layers", "embed_dim", "attention_heads", "seed")}  # the rest is in the spec
    assert check_canaries(store, models={"proteins/esm": Model(settings=own)}) == ([], 8, [])
    other = check_canaries(store, models={"proteins/esm": Model(settings={**own, "seed": 4})})
    assert other[1] == 5
    assert "weights_sha256" in other[2][0]


def test_a_protein_that_the_catalog_has_lost_is_no_canary(store):
    with store.writer() as catalog:
        catalog.execute("DELETE FROM data.proteins WHERE symbol = 'ABF1'")
    assert check_canaries(store) == ([], 4, [])
