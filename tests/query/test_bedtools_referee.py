"""The same questions asked of bedtools, which knows nothing of our bins: is any negative bound?"""

from __future__ import annotations

import shutil

import pytest

from tests.query.world import busy_world
from tfbind_store.query.selection import Selection, SelectionConfig, make_selection

pytestmark = pytest.mark.skipif(
    shutil.which("bedtools") is None, reason="the bedtools program is absent: apt-get install bedtools"
)


def bed(rows):
    import pybedtools

    text = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    return pybedtools.BedTool(text, from_string=True)


@pytest.mark.parametrize("n_bins", [1, 4])
def test_no_negative_overlaps_a_peak_of_its_experiment(tmp_path, n_bins):
    store = busy_world(tmp_path).write()
    make_selection(store, "s", SelectionConfig(n_bins=n_bins, margin_bp=0, negatives=("random:3", "scoped:3")))
    table = Selection.open(store, "s").columns()
    with store.reader() as catalog:
        peaks = catalog.rows(
            """SELECT e.experiment_id, c.chrom, p.start_bp, p.end_bp FROM data.peaks p
               JOIN data.chromosomes c USING (chrom_id) JOIN data.experiments e USING (experiment_id)"""
        )
        blacklist = bed(catalog.rows('SELECT chrom, start, "end" FROM blacklist'))
    rows = {}
    for experiment, window, first, kind in zip(
        *(table[name].tolist() for name in ("experiment", "window", "bin", "kind")), strict=True
    ):
        locus = store.tiling.bin_locus(window, first)
        end = min(
            locus.start + n_bins * 16, dict(zip(store.tiling.chroms, store.tiling.lengths_bp, strict=True))[locus.chrom]
        )
        rows.setdefault(kind != "positive", []).append((locus.chrom, locus.start, end, experiment))
    for experiment in range(7):
        own = bed(sorted(peak[1:] for peak in peaks if peak[0] == experiment) or [("elsewhere", 0, 1)])
        negatives = bed(row for row in rows[True] if row[3] == experiment)
        assert negatives.count() > 0
        assert negatives.intersect(own, u=True).count() == 0
    positives = bed(row for row in rows[False])
    assert positives.count() == len(rows[False])
    assert positives.intersect(bed(sorted(peak[1:] for peak in peaks)), u=True).count() == positives.count()
    if n_bins == 1:
        assert bed(rows[True] + rows[False]).intersect(blacklist, u=True).count() == 0
