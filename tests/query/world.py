"""Small stores for the tests of this folder: a genome and catalog rows written straight in, no import verbs."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfbind_store.loci import Grid
from tfbind_store.store.folder import Store

BASES = np.frombuffer(b"ACGT", dtype=np.uint8)


def random_sequence(length: int, seed: int) -> str:
    return BASES[np.random.default_rng(seed).integers(0, 4, length)].tobytes().decode()


def write_fasta(path: Path, chroms: dict[str, str]) -> Path:
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in chroms.items()))
    return path


class World:
    """A store with hand-made experiments."""

    def __init__(self, folder: Path, chroms: dict[str, str], grid: Grid) -> None:
        fasta = write_fasta(folder / "genome.fa", chroms)
        self.store = Store.create(folder / "store", fasta=fasta, grid=grid)
        self.tiling = self.store.tiling
        self._tables: dict[str, list[dict[str, Any]]] = {}
        self._factors: dict[str, int] = {}
        self._biotypes: dict[str, int] = {}
        self._experiments: dict[str, int] = {}
        self._proteins: dict[str, int] = {}

    def add(self, table: str, **row: Any) -> None:
        self._tables.setdefault(table, []).append(row)

    def factor(self, name: str, genes: Sequence[str] = (), *, sequence: str | None = "") -> int:
        """Sequence: "" makes one from the gene's name, None leaves the factor without."""
        if name in self._factors:
            return self._factors[name]
        factor_id = self._factors[name] = len(self._factors)
        genes = list(genes) or [name]
        self.add(
            "factors", factor_id=factor_id, factor=name, genes=genes, has_protein=sequence is not None, family=None
        )
        for position, gene in enumerate(genes):
            protein_id = None if sequence is None else self.protein(gene, sequence)
            self.add("factor_subunits", factor_id=factor_id, position=position, gene=gene, protein_id=protein_id)
        return factor_id

    def protein(self, gene: str, sequence: str = "") -> int:
        if gene in self._proteins:
            return self._proteins[gene]
        protein_id = self._proteins[gene] = len(self._proteins)
        sequence = sequence or "M" + "".join("ACDEFGHIKL"[ord(letter) % 10] for letter in gene) * 3
        self.add(
            "proteins",
            protein_id=protein_id,
            symbol=gene,
            accession=None,
            species=None,
            reviewed=None,
            sequence=sequence,
            sha256=hashlib.sha256(sequence.encode()).hexdigest(),
            length_aa=len(sequence),
            chosen_by="test",
            source_id=0,
        )
        return protein_id

    def biotype(self, name: str) -> int:
        if name not in self._biotypes:
            base, _, treatment = name.partition("_")
            self._biotypes[name] = len(self._biotypes)
            self.add(
                "biotypes",
                biotype_id=self._biotypes[name],
                biotype=name,
                base_biotype=base,
                treatment=treatment or None,
                metadata="{}",
            )
            number = self._biotypes[name]
            self.add("contexts", context_id=number, biotype_id=number, text=f"cells {name}", template="cells {biotype}")
        return self._biotypes[name]

    def source(self, kind: str = "peaks", *, chroms: Sequence[str] | None = None) -> int:
        source_id = len(self._tables.get("sources", []))
        self.add(
            "sources",
            source_id=source_id,
            kind=kind,
            path=f"/{kind}{source_id}",
            sha256=f"{source_id:064d}",
            size_bytes=1,
            options="{}",
            rows_read=1,
            rows_kept=1,
            dropped="{}",
        )
        for chrom in self.tiling.chroms if chroms is None else chroms:
            self.add("source_chromosomes", source_id=source_id, chrom_id=self.tiling.chrom_index[chrom])
        return source_id

    def experiment(self, name: str, peaks: Sequence[tuple[Any, ...]] = (), *, source: int) -> int:
        """Peaks: (chrom, start, end), and if given summit and score. Name: accession.factor.biotype."""
        _, factor, biotype = name.split(".", 2)
        number = self._experiments[name] = len(self._experiments)
        self.add(
            "experiments",
            experiment_id=number,
            experiment=name,
            accession=name.split(".")[0],
            factor_id=self.factor(factor),
            biotype_id=self.biotype(biotype),
            modification=None,
            peaks_nr=None,
            assembly=None,
            metadata="{}",
        )
        self.add("experiment_sources", experiment_id=number, source_id=source)
        for chrom, start, end, *rest in peaks:
            summit = rest[0] if rest else (start + end) // 2
            chrom_id = self.tiling.chrom_index[chrom]
            address = self.tiling.address([chrom_id], [summit])
            self.add(
                "peaks",
                experiment_id=number,
                chrom_id=chrom_id,
                start_bp=start,
                end_bp=end,
                summit_bp=summit,
                score=float(rest[1]) if len(rest) > 1 else None,
                window_id=int(address.window[0]),
                bin=int(address.bin[0]),
                source_id=source,
            )
        return number

    def relaxed(self, experiment: int, chrom: str, start: int, end: int) -> None:
        self.add(
            "relaxed_peaks",
            experiment_id=experiment,
            chrom_id=self.tiling.chrom_index[chrom],
            start_bp=start,
            end_bp=end,
            source_id=0,
        )

    def blacklist(self, chrom: str, start: int, end: int) -> None:
        chrom_id = self.tiling.chrom_index[chrom]
        self.add("exclusions", name="blacklist", chrom_id=chrom_id, start_bp=start, end_bp=end, source_id=0)

    def synonym(self, synonym: str, symbol: str) -> None:
        self.add("synonyms", synonym=synonym, symbol=symbol)

    def write(self) -> Store:
        with self.store.writer() as catalog, contextlib.ExitStack() as stack:
            stack.enter_context(catalog.transaction())
            for table, rows in self._tables.items():
                catalog.insert(f"data.{table}", {column: [row[column] for row in rows] for column in rows[0]})
        return self.store


def busy_world(folder: Path, *, seed: int = 0, bin_bp: int = 16, n_bins: int = 8) -> World:
    """Three chromosomes with an N run, six experiments of five factors in two biotypes, relaxed peaks, a blacklist."""
    rng = np.random.default_rng(seed)
    grid = Grid(window_bp=n_bins * bin_bp + 4 * bin_bp, n_bins=n_bins, bin_bp=bin_bp)
    lengths = {"chr1": 6_005, "chr2": 3_333, "chr3": 1_777}
    chroms = {name: random_sequence(length, seed + place) for place, (name, length) in enumerate(lengths.items())}
    chroms["chr1"] = chroms["chr1"][:1_000] + "N" * 700 + chroms["chr1"][1_700:]
    world = World(folder, chroms, grid)
    everywhere, not_third = world.source(), world.source(chroms=["chr1", "chr2"])
    world.source("relaxed")
    world.source("blacklist")
    names = ["E1.AAA.cellA", "E2.BBB.cellA", "E3.CCC.cellA", "E4.AAA.cellB", "E5.DDD.cellB", "E6.AAA.cellA"]
    for place, name in enumerate(names):
        source = not_third if place == 2 else everywhere
        peaks = []
        for _ in range(int(rng.integers(8, 25))):
            chrom = str(rng.choice(["chr1", "chr2"] if place == 2 else list(lengths)))
            start = int(rng.integers(0, lengths[chrom] - 80))
            end = start + int(rng.integers(1, 80))
            summit = int(rng.integers(start, end))
            if set(chroms[chrom][summit // bin_bp * bin_bp : (summit // bin_bp + 1) * bin_bp]) != {"N"}:
                peaks.append((chrom, start, end, summit, float(rng.integers(1, 1000))))
        number = world.experiment(name, peaks, source=source)
        if place < 2:
            for chrom, start, end, *_ in peaks[:5]:
                world.relaxed(number, chrom, max(0, start - 40), min(lengths[chrom], end + 40))
    world.experiment("E7.EEE.cellB", source=everywhere)
    world.blacklist("chr2", 900, 1_100)
    return world
