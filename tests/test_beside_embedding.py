"""While an array is being embedded, everybody else works on: reading, selecting, training, importing."""

from __future__ import annotations

import shutil

import pytest

from tests.planted import BIN_BP, planted  # noqa: F401
from tfbind_store.precompute.run import embed_windows
from tfbind_store.precompute.toy import ToyEmbedder
from tfbind_store.query.selection import Selection, SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.store.folder import Store
from tfbind_store.training.train import TrainConfig, train_head


class Interrupting(ToyEmbedder):
    """The toy that lets others work between two windows."""

    def __init__(self, others) -> None:
        super().__init__(bin_bp=BIN_BP)
        self.others, self.n_windows = others, 0

    def embed(self, windows, codes, tiling):
        for result in super().embed(windows, codes, tiling):
            self.n_windows += 1
            if self.n_windows == 5:
                self.others()
            yield result


@pytest.fixture
def path(planted, tmp_path):  # noqa: F811
    return shutil.copytree(planted.store.path, tmp_path / "store")


def test_others_read_select_train_and_import_in_the_middle_of_an_embed(path):
    seen = {}

    def others() -> None:
        store = Store.open(path)
        with store.reader() as catalog:
            seen["peaks"] = catalog.one("SELECT count(*) FROM peaks")[0]
        split = SplitConfig(valid_chroms=("chr3",), test_chroms=("chr4",))
        make_selection(store, "meanwhile", SelectionConfig(n_bins=4, margin_bp=0, split=split))
        config = TrainConfig(steps=2, validate_every=2, device="cpu", windows="embeddings/windows")
        seen["steps"] = train_head(store, "meanwhile", config, "meanwhile").steps
        with store.writer() as catalog:
            catalog.execute("INSERT INTO data.meta VALUES ('meanwhile', 'written')")

    report = embed_windows(Store.open(path), Interrupting(others), name="late")
    store = Store.open(path)
    assert report.is_complete
    assert (seen["peaks"] > 0, seen["steps"]) == (True, 2)
    Selection.open(store, "meanwhile").require_training_rows()
    with store.reader() as catalog:
        assert catalog.one("SELECT value FROM data.meta WHERE key = 'meanwhile'") == ("written",)
        indexed = catalog.one("SELECT sum(n_ok) FROM data.shards WHERE array_name = 'embeddings/late'")
        assert indexed == (report.n_asked,)
        assert catalog.one("SELECT count(*) FROM data.selections WHERE selection = 'meanwhile'") == (1,)
        assert catalog.one("SELECT count(*) FROM data.runs WHERE run = 'meanwhile'") == (1,)
