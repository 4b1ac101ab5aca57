"""Bring outside files into the catalog: peaks, proteins, experiments, biotypes, loci, tracks.

One function per kind of file. Each takes a store and a path and returns an `ImportReport`; each happens whole or not at
all; the same file with the same options again changes nothing. What cannot be used is refused with counts per cause;
what the caller allows to be dropped is dropped and counted, and under ``strict`` nothing is. DuckDB does the work on
rows; Python sees each distinct name once.
"""

from tfbind_store.ingest.kin_tables import import_families, import_trunk
from tfbind_store.ingest.listed import import_negatives
from tfbind_store.ingest.loci import import_blacklist, import_loci
from tfbind_store.ingest.metadata import import_biotypes, import_experiments
from tfbind_store.ingest.peak_tracks import import_peak_tracks
from tfbind_store.ingest.peaks import import_peaks
from tfbind_store.ingest.proteins import import_proteins
from tfbind_store.ingest.sources import DROP_CAUSES, ImportReport
from tfbind_store.ingest.tracks import import_signals, import_tracks

__all__ = [
    "DROP_CAUSES",
    "ImportReport",
    "import_biotypes",
    "import_blacklist",
    "import_experiments",
    "import_families",
    "import_loci",
    "import_negatives",
    "import_peak_tracks",
    "import_peaks",
    "import_proteins",
    "import_signals",
    "import_tracks",
    "import_trunk",
]
