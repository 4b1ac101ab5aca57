"""Negatives of others: the reference's BED and its scoped arrays, and that none of them contradicts the peaks."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from tests.query.world import busy_world
from tfbind_store.cli import main
from tfbind_store.errors import InputFileError, StrictError
from tfbind_store.ingest import import_negatives
from tfbind_store.query.selection import Selection, SelectionConfig, make_selection


@pytest.fixture
def store(tmp_path):
    return busy_world(tmp_path).write()


@pytest.fixture
def bed(tmp_path):
    """Every 20 bp of chr1 and chr2: many of them lie in peaks."""
    path = tmp_path / "ranges.bed"
    loci = [("chr1", start) for start in range(0, 5_900, 20)] + [("chr2", start) for start in range(0, 3_300, 20)]
    path.write_text("".join(f"{chrom}\t{start}\t{start + 16}\n" for chrom, start in loci))
    return path


def arrays(folder, n_rows, **masks):
    folder.mkdir()
    for name, mask in masks.items():
        np.save(folder / f"{name.replace('__', '.')}.bed.bool.npy", mask)
    return folder


def rows_of(store, *rules):
    make_selection(store, "s", SelectionConfig(negatives=rules, margin_bp=16), overwrite=True)
    return Selection.open(store, "s")


def test_a_bed_gives_negatives_to_every_experiment_and_never_a_bound_bin(store, bed):
    report = import_negatives(store, bed)
    assert (report.rows_kept, report.dropped) == (460, {})
    selection = rows_of(store, "listed:2")
    table = selection.columns()
    mine = table["kind"] == "listed"
    assert mine.sum() > 100
    assert not (table["label"][mine] == 1).any()
    first = table["window"][mine].astype(int) * store.grid.n_bins + table["bin"][mine]
    with store.reader() as catalog:
        loci = catalog.columns("SELECT chrom_id, (start_bp + end_bp) // 2 AS middle FROM data.listed_negatives")
    base = store.tiling.first_window[loci["chrom_id"].astype(int)] * store.grid.n_bins
    assert set(first.tolist()) <= set((base + loci["middle"].astype(int) // store.grid.bin_bp).tolist())
    assert "nothing changed" in import_negatives(store, bed).notes[0]


def test_scoped_arrays_give_each_experiment_its_own(store, bed, tmp_path):
    n_rows = 460
    masks = {
        "E1__AAA__cellA": np.arange(n_rows) % 3 == 0,
        "E5__DDD__cellB": np.arange(n_rows) % 3 == 1,
        "E9__XXX__neuron": np.ones(n_rows, dtype=bool),
    }
    folder = arrays(tmp_path / "npy", n_rows, **masks)
    report = import_negatives(store, bed, scoped=folder, per_experiment=120, seed=4)
    assert report.dropped == {"array_of_unknown_experiment": 1}
    with store.reader() as catalog:
        found = catalog.rows(
            "SELECT experiment, chrom_id, n.start_bp FROM data.listed_negatives n JOIN data.experiments USING"
            " (experiment_id)"
        )
    rows = [(0, start) for start in range(0, 5_900, 20)] + [(1, start) for start in range(0, 3_300, 20)]
    for name, mask in masks.items():
        kept = {(chrom, start) for experiment, chrom, start in found if experiment == name.replace("__", ".")}
        assert kept <= {row for row, is_free in zip(rows, mask, strict=True) if is_free}
        assert len(kept) == (0 if "XXX" in name else 120)
    table = rows_of(store, "listed:1").columns()
    listed = set(table["experiment"][table["kind"] == "listed"].tolist())
    assert listed == {0, 4}  # the others are short of negatives, which is said
    assert rows_of(store, "listed:1").info["shortfall"]["listed"]["experiments"] >= 3
    with pytest.raises(StrictError, match="array of unknown experiment"):
        import_negatives(store, bed, scoped=folder, per_experiment=7, strict=True)


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize(
    ("mask", "what"),
    [
        (np.ones(459, dtype=bool), "expected one boolean for each of the BED's 460 rows"),
        (np.ones(460, dtype=np.int8), "int8 of shape"),
        (np.array([_Bomb()] * 460, dtype=object), "no array of booleans"),
    ],
)
def test_what_is_no_array_of_booleans_is_refused_and_nothing_unpickled(store, bed, tmp_path, mask, what):
    folder = arrays(tmp_path / "npy", 460, E1__AAA__cellA=mask)
    with pytest.raises(InputFileError, match=what):
        import_negatives(store, bed, scoped=folder)
    with store.reader() as catalog:
        assert catalog.one("SELECT count(*) FROM data.listed_negatives") == (0,)


def test_a_folder_without_arrays_or_of_other_experiments_is_refused(store, bed, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputFileError, match="no file"):
        import_negatives(store, bed, scoped=tmp_path / "empty")
    folder = arrays(tmp_path / "npy", 460, E9__XXX__neuron=np.ones(460, dtype=bool))
    with pytest.raises(InputFileError, match="none of the 1 arrays is of an experiment"):
        import_negatives(store, bed, scoped=folder)


def test_the_command(store, bed):
    done = CliRunner().invoke(main, ["import", "negatives", str(store.path), str(bed)])
    assert done.exit_code == 0, done.output
    assert "460" in done.output
