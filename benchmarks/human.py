"""Cell types: chromosome 22 of hg19, 29 factors in up to nine cell types, blocks of one megabase kept apart.

    python benchmarks/human.py OUT_DIR            # all stages, on human_hg19_chr22 of $TFBIND_TEST_DATA
    python benchmarks/human.py OUT_DIR --quick    # less of everything, for one session

The FASTA has 25 of chromosome 22's 51 megabases; the rest is N, which is neither trained on nor scored. Blocks of one
megabase are drawn by seed for training (70 %), validation and test, and each loses 16 kb at either end, so that no
window reads into another split's block. Peaks are ENCODE-DREAM's conservative ones; what is in the relaxed ones alone
is ambiguous and left out. One cell type and four factors drawn by seed are in no training, neither the trunk's nor
the heads'. Scores as in ``yeast.py``. A small trunk on less than a hundredth of a genome: what can be learned here
is little, and the table says how little. The last line is one JSON object.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from stages import MAIN, SELECTION, Effort, Stages, arguments, go

from tfbind_store.ingest import import_loci
from tfbind_store.precompute.embedder import make_sequence_embedder, make_text_embedder
from tfbind_store.precompute.rows import embed_contexts, embed_factors
from tfbind_store.prepare.run import prepare
from tfbind_store.query.splits import SplitConfig

HEADS = ("adapter", "two_tower", "bilinear", "linear")
FULL = Effort(passes=20, control_passes=5, steps=1500, seeds=3)
QUICK = Effort(passes=4, control_passes=1, steps=400, seeds=3)
BLOCK_BP, GAP_BP = 1_000_000, 16_384
LEAST_REAL = 0.2
"""Share of a block's bases that must be A, C, G or T."""
SHARES = {"valid": 0.1, "test": 0.2}
PLAN = """
store = "{out}/human.store"

[init]
fasta = "{data}/hg19.chr22.patchy_maf_merged.fa.gz"
window_bp = 16384
bins = 96

[proteins]
path = "{data}/lambert_human_TF_proteins.uniprot.fa.gz"

[[peaks]]
path = "{data}/peaks.conservative.narrowPeak.gz"

[[peaks]]
path = "{data}/peaks.relaxed.narrowPeak.gz"
relaxed = true

[biotypes]
path = "{data}/cell_types.tsv"
key = "cell"

[blacklist]
path = "{data}/hg19.DAC_blacklist.chr22.bed"
"""


class Human(Stages):
    """The stages of chromosome 22."""

    name = "human"
    split = SplitConfig(loci="blocks", hold_out={"biotype": ("HeLa-S3",)}, hold_out_random=("factor:4:min_peaks=300",))
    allow_leaks = ("paralog", "trunk")
    sets = ("heads", "negatives", "control")

    def store(self) -> None:
        """Genome, proteins, peaks, blocks and the selection."""
        plan = self.out / "human.toml"
        plan.write_text(PLAN.format(out=self.out.resolve(), data=self.data.resolve()))
        prepare(plan)
        self._blocks()
        self.select(SELECTION, "random:1,scoped:1")
        embed_factors(self.open, make_sequence_embedder("composition"))
        embed_contexts(self.open, make_text_embedder("hashed"))

    def _blocks(self) -> None:
        store = self.open
        chrom, length = store.tiling.chroms[0], store.tiling.lengths_bp[0]
        real = np.asarray(store.genome.codes(chrom, 0, length)) < 4
        starts = [at for at in range(0, length - BLOCK_BP, BLOCK_BP) if real[at : at + BLOCK_BP].mean() >= LEAST_REAL]
        order = np.random.default_rng(0).permutation(len(starts))
        n_valid, n_test = (max(1, round(share * len(starts))) for share in SHARES.values())
        split_of = {
            place: "valid" if rank < n_valid else "test" if rank < n_valid + n_test else "train"
            for rank, place in enumerate(order.tolist())
        }
        for split in ("train", "valid", "test"):
            bed = self.out / f"blocks_{split}.bed"
            lines = [
                f"{chrom}\t{start + GAP_BP}\t{start + BLOCK_BP - GAP_BP}\n"
                for place, start in enumerate(starts)
                if split_of[place] == split
            ]
            bed.write_text("".join(lines))
            import_loci(store, bed, "blocks", split=split)

    def trunk(self) -> None:
        """Train a trunk on the training blocks and embed what is not N."""
        self.pretrain("trunk", self.effort.passes)
        self.embed("trunk", "windows")

    def control(self) -> None:
        """Trunk and head on peaks at random places, scored on the measured ones."""
        self.pretrain("control", self.effort.control_passes, permuted=True)
        self.embed("control", "control")
        config = {"head": MAIN, "windows": "control", "permute_labels": True, **self.budget(MAIN)}
        self.table("control", {"permuted": self.seeds("control", 1, **config)})


STAGES = ("store", "trunk", "heads", "negatives", "control")


def main() -> None:
    """Run the stages that were asked for and print all that is known."""
    args = arguments(__doc__ or "", STAGES, HEADS, FULL, QUICK)
    data = args.data or Path(os.environ.get("TFBIND_TEST_DATA", "")) / "human_hg19_chr22"
    human = Human(args.out_dir, data, args.effort, tuple(args.heads.split(",")))
    methods = (human.store, human.trunk, human.compare_heads, human.compare_negatives, human.control)
    go(human, dict(zip(STAGES, methods, strict=True)), args.stage)


if __name__ == "__main__":
    main()
