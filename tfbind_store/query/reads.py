"""What this package asks the catalog: all its own SQL, each answer as numpy columns in a stated order.

Queries from users go through ``Catalog.untrusted``, not through here.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Integer, UInt8

from tfbind_store.catalog.columns import Columns
from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import SelectionError
from tfbind_store.loci import Tiling
from tfbind_store.query.stretches import bin_spans, covered
from tfbind_store.store.folder import Store

_ACGT = 4  # codes below this are bases
_BINS_AT_ONCE = 1 << 16

_EXPERIMENTS = """
    SELECT e.experiment_id, e.experiment, e.factor_id, f.factor, f.has_protein, e.biotype_id, b.biotype,
           b.base_biotype, coalesce(p.n_peaks, 0)::BIGINT AS n_peaks
    FROM data.experiments e
    JOIN data.factors f USING (factor_id)
    JOIN data.biotypes b USING (biotype_id)
    LEFT JOIN (SELECT experiment_id, count(*) AS n_peaks FROM data.peaks GROUP BY experiment_id) p USING (experiment_id)
    ORDER BY e.experiment_id
"""
_PEAKS = """
    SELECT experiment_id, chrom_id, start_bp::INTEGER AS start_bp, end_bp::INTEGER AS end_bp,
           summit_bp::INTEGER AS summit_bp, score
    FROM data.peaks
"""
_RELAXED = """
    SELECT experiment_id, chrom_id, start_bp, end_bp, start_bp AS summit_bp
    FROM data.relaxed_peaks ORDER BY experiment_id, chrom_id, start_bp, end_bp
"""
_LABELLED = """
    SELECT DISTINCT es.experiment_id, sc.chrom_id
    FROM data.experiment_sources es
    JOIN data.sources s USING (source_id)
    JOIN data.source_chromosomes sc USING (source_id)
    WHERE s.kind <> 'relaxed' ORDER BY ALL
"""
_EXCLUSIONS = "SELECT chrom_id, start_bp, end_bp FROM data.exclusions ORDER BY ALL"
_WINDOWS_WITH_N = "SELECT window_id FROM data.windows WHERE n_fraction > 0 ORDER BY window_id"
_EMPTY_WINDOWS = "SELECT window_id FROM data.windows WHERE gc_fraction IS NULL ORDER BY window_id"
_SUBUNITS = """
    SELECT f.factor_id, f.factor, s.gene, p.sha256
    FROM data.factors f
    JOIN data.factor_subunits s USING (factor_id)
    LEFT JOIN data.proteins p USING (protein_id)
    ORDER BY f.factor_id, s.position
"""
_PROTEINS = """
    SELECT DISTINCT sha256, sequence FROM data.proteins JOIN data.factor_subunits USING (protein_id) ORDER BY sha256
"""
_LISTED = "SELECT experiment_id, chrom_id, start_bp, end_bp FROM data.listed_negatives ORDER BY ALL"
_DOMAINS = "SELECT gene, domain FROM data.gene_domains ORDER BY gene"
_TRUNKS = "SELECT trunk, kind, name FROM data.trunk_training ORDER BY ALL"
_LOCI = """
    SELECT chrom_id, start_bp, end_bp, split FROM data.loci
    WHERE set_name = $name ORDER BY chrom_id, start_bp, end_bp, split
"""
_LOCI_SETS = "SELECT DISTINCT set_name FROM data.loci ORDER BY 1"
_SYNONYMS = "SELECT synonym, symbol FROM data.synonyms ORDER BY ALL"


def experiments(catalog: Catalog) -> Columns:
    """Return every experiment with its factor and biotype, ascending by id."""
    return catalog.columns(_EXPERIMENTS)


def peaks(catalog: Catalog) -> Columns:
    """Return every peak in the order of the table: tens of millions are not sorted again, and 4 bytes a number do."""
    return catalog.columns(_PEAKS)


def relaxed_peaks(catalog: Catalog) -> Columns:
    """Return every relaxed peak, by experiment and place."""
    return catalog.columns(_RELAXED)


def exclusions(catalog: Catalog) -> Columns:
    """Return every blacklisted stretch."""
    return catalog.columns(_EXCLUSIONS)


def subunits(catalog: Catalog) -> list[tuple[int, str, str, str | None]]:
    """Return (factor_id, factor, gene, sha256 of its sequence or None) for every subunit of every factor."""
    return [(int(factor_id), factor, gene, sha256) for factor_id, factor, gene, sha256 in catalog.rows(_SUBUNITS)]


def synonyms(catalog: Catalog) -> dict[str, str]:
    """Return the symbol that each synonym stands for; a synonym of several symbols is left out."""
    pairs = catalog.rows(_SYNONYMS)
    often = {name for (name, _), (other, _) in pairwise(pairs) if name == other}
    return {synonym: symbol for synonym, symbol in pairs if synonym not in often}


def labelled_chromosomes(
    catalog: Catalog, experiment_ids: Integer[np.ndarray, " e"], n_chroms: int
) -> Bool[np.ndarray, "e chroms"]:
    """Return on which chromosomes each experiment's sources looked; `experiment_ids` ascend."""
    pairs = catalog.columns(_LABELLED)
    labelled = np.zeros((len(experiment_ids), n_chroms), dtype=bool)
    known = np.isin(pairs["experiment_id"], experiment_ids)
    labelled[np.searchsorted(experiment_ids, pairs["experiment_id"][known]), pairs["chrom_id"][known]] = True
    return labelled


def empty_windows(catalog: Catalog, n_windows: int) -> Bool[np.ndarray, " windows"]:
    """Return which windows hold no A, C, G or T in their kept bins: nobody embeds them."""
    empty = np.zeros(n_windows, dtype=bool)
    empty[catalog.columns(_EMPTY_WINDOWS)["window_id"]] = True
    return empty


def acgt_per_bin(store: Store, catalog: Catalog) -> Integer[np.ndarray, " bins"]:
    """Return how many bases of each global bin are A, C, G or T; 0 past chromosome ends."""
    tiling, bin_bp = store.tiling, store.tiling.grid.bin_bp
    counts = np.zeros(tiling.n_bins, dtype=np.int32)
    for chrom, length_bp in enumerate(tiling.lengths_bp):
        bins = tiling.global_bins(chrom)
        counts[bins] = bin_bp
        counts[bins[-1]] = length_bp - (len(bins) - 1) * bin_bp
    for window in catalog.columns(_WINDOWS_WITH_N)["window_id"].tolist():
        codes = np.asarray(store.genome.codes(*tiling.kept(window)))
        first = window * tiling.grid.n_bins
        counts[first : first + tiling.grid.n_bins] = (codes.reshape(-1, bin_bp) < _ACGT).sum(axis=1)
    return counts


def scorable_bins(tiling: Tiling, acgt: Integer[np.ndarray, " bins"], excluded: Columns) -> Bool[np.ndarray, " bins"]:
    """Return which global bins hold a base that is not N and touch no blacklist (`exclusions`)."""
    scorable: Bool[np.ndarray, " bins"] = np.asarray(acgt) > 0
    spans = bin_spans(tiling, excluded["chrom_id"], excluded["start_bp"], excluded["end_bp"])
    return np.asarray(scorable & ~covered(spans.first, spans.last, tiling.n_bins))


def gc_per_bin(store: Store) -> Integer[np.ndarray, " bins"]:
    """Return how many bases of each global bin are G or C."""
    tiling, bin_bp = store.tiling, store.tiling.grid.bin_bp
    counts = np.zeros(tiling.n_bins, dtype=np.int32)
    for number, (chrom, length_bp) in enumerate(zip(tiling.chroms, tiling.lengths_bp, strict=True)):
        bins = tiling.global_bins(number)
        for begin in range(0, len(bins), _BINS_AT_ONCE):
            part = bins[begin : begin + _BINS_AT_ONCE]
            start, end = begin * bin_bp, min((begin + len(part)) * bin_bp, length_bp)
            codes = np.zeros(len(part) * bin_bp, dtype=np.uint8)
            codes[: end - start] = store.genome.codes(chrom, start, end)
            counts[part] = _gc_of_bins(codes, bin_bp)
        store.genome.release()
    return counts


def _gc_of_bins(codes: UInt8[np.ndarray, " bp"], bin_bp: int) -> Int32[np.ndarray, " bins"]:
    """Count G and C in bins; eight bases at once where a bin is so many, four times as fast."""
    word = np.dtype(np.uint64 if bin_bp % 8 == 0 else np.uint8)
    one, low_bits = np.ones(1, dtype=word), np.frombuffer(b"\1" * word.itemsize, dtype=word)
    bases = codes.view(word)
    is_gc = (bases ^ (bases >> one)) & low_bits  # of codes 0 to 4 this is 1 for C (1) and G (2) only
    return np.asarray(np.bitwise_count(is_gc).reshape(-1, bin_bp // word.itemsize).sum(axis=1, dtype=np.int32))


def proteins(catalog: Catalog) -> dict[str, str]:
    """Return the sequences of all factors' subunits by their sha256."""
    return {str(sha256): str(sequence) for sha256, sequence in catalog.rows(_PROTEINS)}


def listed_negatives(catalog: Catalog) -> Columns:
    """Return the loci that were imported as unbound; ``experiment_id`` -1 means in every experiment."""
    return catalog.columns(_LISTED)


def domains(catalog: Catalog) -> dict[str, str]:
    """Return the DNA-binding domain of each gene that an imported table names."""
    return {str(gene): str(domain) for gene, domain in _later(catalog, "gene_domains", _DOMAINS)}


def imported_trunks(catalog: Catalog) -> dict[str, dict[str, list[str]]]:
    """Return what imported tables say trunks were trained on: names by ``factors`` and ``biotypes``, by trunk."""
    found: dict[str, dict[str, list[str]]] = {}
    for trunk, kind, name in _later(catalog, "trunk_training", _TRUNKS):
        found.setdefault(str(trunk), {}).setdefault(str(kind), []).append(str(name))
    return found


def loci_sets(catalog: Catalog) -> list[str]:
    """Return the names of all sets of loci."""
    return [str(name) for (name,) in catalog.rows(_LOCI_SETS)]


def loci(catalog: Catalog, name: str) -> Columns:
    """Return the loci of a named set with their splits.

    Raises
    ------
    SelectionError
        If there is no such set.
    """
    found = catalog.columns(_LOCI, {"name": name})
    if not found.n:
        known = loci_sets(catalog)
        fix = f"known: {', '.join(known)}" if known else "import one: tfbind import loci STORE BED --name NAME"
        raise SelectionError(f"no set of loci {name!r}", where="split.loci", fix=fix)
    return found


def _later(catalog: Catalog, table: str, sql: str) -> list[tuple[Any, ...]]:
    """Return rows of a table that a catalog may have been made without; it says nothing then."""
    there = catalog.one("SELECT count(*) FROM information_schema.tables WHERE table_name = ?", [table])
    return catalog.rows(sql) if there and there[0] else []
