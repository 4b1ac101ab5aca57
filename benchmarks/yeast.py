"""Yeast from its files to tables: heads, trunks, stored precisions, negatives, a control, baselines, why it fails.

    python benchmarks/yeast.py OUT_DIR                        # all stages, on yeast_sacCer3 of $TFBIND_TEST_DATA
    python benchmarks/yeast.py OUT_DIR --quick                # less of everything, for one session
    python benchmarks/yeast.py OUT_DIR --stage heads,control  # some stages; what is done is not done again

350 factors of ChIP-exo peaks on sacCer3. One selection holds out chromosomes IV and XVI (XIII validates), twenty
factors drawn by seed, and seven families of two proteins each; trunk and heads are trained on the rest. The trunk is
told of open reading frames and learns quarters of bins beside bins. Scores are over all labelled bins of 128 bp,
medians over experiments with 20 bound bins or more. *mean* is the model's mean over training factors, *nearest* its
score for the nearest training factor by protein, *ahead* the share of experiments in which the model beats both. The
control moves every peak to a random place of its chromosome before its trunk is trained. Everything is kept in
OUT_DIR, so a run that was cut goes on. The last line is one JSON object.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from holdout_scores import ENOUGH, Row
from stages import MAIN, SELECTION, SIZES, Effort, Stages, arguments, go
from yeast_error_analysis import explain

from tfbind_store.catalog.database import Catalog
from tfbind_store.evaluation.evaluate import EvaluateConfig, evaluate_run
from tfbind_store.precompute.convnet import Convnet, save_convnet
from tfbind_store.precompute.embedder import make_sequence_embedder, make_text_embedder
from tfbind_store.precompute.project import ProjectConfig, project_array
from tfbind_store.precompute.rows import embed_contexts, embed_factors
from tfbind_store.prepare.run import prepare
from tfbind_store.query.splits import SplitConfig

HEADS = ("adapter", "two_tower", "bilinear", "linear")
FAMILIES = ("CKA1", "HOS2", "HST1", "KIN28", "LYS20", "MET31", "SNF2")
"""Of the families with two proteins or more among the factors (identity 0.4), those that no drawn factor is of."""
FULL = Effort(passes=60, control_passes=15, steps=1500, seeds=3)
QUICK = Effort(passes=20, control_passes=4, steps=500, seeds=3)
PLAN = """
store = "{out}/yeast.store"

[init]
fasta = "{data}/sacCer3.nuclear.fa.gz"
window_bp = 16384
bins = 96

[proteins]
path = "{data}/sacCer3.proteins.fa.gz"
synonyms = ["{data}/SGD_features_170331.tab.gz"]

[peaks]
path = "{data}/peaks.remap.bed.gz"

[blacklist]
path = "{data}/ChExMix_Peak_Filter_List_190612.bed"
drop = ["unknown_chromosome"]
"""


class Yeast(Stages):
    """The stages of yeast."""

    name = "yeast"
    split = SplitConfig(
        test_chroms=("chrIV", "chrXVI"),
        valid_chroms=("chrXIII",),
        hold_out={"family": FAMILIES},
        hold_out_random=("factor:20:min_peaks=100",),
    )
    allow_leaks = ("paralog",)
    sizes = replace(SIZES, frame_codons=80)
    quarter_loss = 1.0
    sets = ("heads", "arrays", "negatives", "control")

    def store(self) -> None:
        """Genome, proteins, peaks and the selection."""
        plan = self.out / "yeast.toml"
        plan.write_text(PLAN.format(out=self.out.resolve(), data=self.data.resolve()))
        prepare(plan)
        self.select(SELECTION, "random:1,scoped:1")
        embed_factors(self.open, make_sequence_embedder("composition"))
        embed_contexts(self.open, make_text_embedder("hashed"))

    def trunk(self) -> None:
        """Train a trunk, make an untrained one, embed the genome with both."""
        self.pretrain("trunk", self.effort.passes)
        if not (self.out / "random" / "model.safetensors").exists():
            torch.manual_seed(0)
            nothing: Mapping[str, list[str]] = {"factors": [], "chromosomes": [], "biotypes": []}
            save_convnet(Convnet(self.sizes), self.out / "random", nothing)
        self.embed("trunk", "windows")
        self.embed("random", "random")

    def arrays(self) -> None:
        """The same head on an untrained trunk, on one byte a number, on fewer axes."""
        projected = {
            "int8": ProjectConfig(int8=True), "axes64": ProjectConfig(dim=64), "axes256": ProjectConfig(dim=256),
        }  # fmt: skip
        table = {}
        for label, name in {"fp16": "windows", "untrained": "random", **{name: name for name in projected}}.items():
            if label in projected:
                project_array(self.open, "embeddings/windows", projected[label], name=name)
            table[label] = self.head(MAIN, name)
            self.table("arrays", table)

    def control(self) -> None:
        """Trunk and head on peaks at random places, scored on the measured ones."""
        self.pretrain("control", self.effort.control_passes, permuted=True)
        self.embed("control", "control")
        config = {"head": MAIN, "windows": "control", "permute_labels": True, **self.budget(MAIN)}
        self.table("control", {"permuted": self.seeds("control", 1, **config)})

    def baselines(self) -> None:
        """All that `tfbind evaluate` says of one run, and why some factors are hard."""
        self.head(MAIN, n=1)
        run = f"{MAIN}-0"
        path = self.open.run_dir(run) / "scores.parquet"
        if not path.exists():
            evaluate_run(self.open, run, EvaluateConfig(motifs=self.data / "JASPAR2024_yeast.jaspar"))
        columns = Catalog.read_parquet(path)
        rows = [dict(zip(columns, row, strict=True)) for row in columns.rows()]
        self.table("baselines", _by_scorer(rows))
        self.table("errors", explain(self.open, run))

    def print(self) -> None:
        """Show the baselines too."""
        super().print()
        if "baselines" not in self.results:
            return
        print(f"\n{'baselines':36}{'scored by':18}{'n':>5}{'AUROC':>8}{'AUPRC':>8}{'model ahead':>13}")
        for row in self.results["baselines"]:
            print(
                f"{row['holdout']:36}{row['scorer']:18}{row['n']:>5}{row['auroc']:>8.3f}{row['auprc']:>8.3f}"
                f"{row['model_ahead']:>13.2f}"
            )
        print("\n" + "\n".join(self.results["errors"]["text"]))


def _by_scorer(rows: list[Row]) -> list[Row]:
    """Return medians by kind of hold-out and scorer; `model_ahead` is how often the model's AUPRC is the larger."""
    enough = [row for row in rows if row["n_positive"] >= ENOUGH]
    model = {(row["holdout"], row["experiment"]): row["auprc"] for row in enough if row["scorer"] == "model"}
    found = []
    for holdout, scorer in sorted({(row["holdout"], row["scorer"]) for row in enough}):
        group = [row for row in enough if (row["holdout"], row["scorer"]) == (holdout, scorer)]
        wins = [model[holdout, row["experiment"]] > row["auprc"] for row in group]
        numbers = {name: float(np.median([row[name] for row in group])) for name in ("auroc", "auprc", "prevalence")}
        found.append(
            {"holdout": holdout, "scorer": scorer, "n": len(group), **numbers, "model_ahead": float(np.mean(wins))}
        )
    return found


STAGES = ("store", "trunk", "heads", "arrays", "negatives", "control", "baselines")


def main() -> None:
    """Run the stages that were asked for and print all that is known."""
    args = arguments(__doc__ or "", STAGES, HEADS, FULL, QUICK)
    data = args.data or Path(os.environ.get("TFBIND_TEST_DATA", "")) / "yeast_sacCer3"
    yeast = Yeast(args.out_dir, data, args.effort, tuple(args.heads.split(",")))
    methods = (
        yeast.store, yeast.trunk, yeast.compare_heads, yeast.arrays, yeast.compare_negatives, yeast.control,
        yeast.baselines,
    )  # fmt: skip
    go(yeast, dict(zip(STAGES, methods, strict=True)), args.stage)


if __name__ == "__main__":
    main()
