"""Contributions of bases: against sequences written out by hand, finite differences, and planted motifs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyBigWig
import pytest
import torch

from tests.planted import BIN_BP, LETTERS, MOTIFS, MotifEmbedder, Planted, make_planted
from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import ConfigError, LocusError
from tfbind_store.interpretation import interpret
from tfbind_store.interpretation.files import Contribution, write_contributions
from tfbind_store.interpretation.interpret import Explainer, InterpretConfig, interpret_loci, open_explainer, resized
from tfbind_store.loci import Locus
from tfbind_store.precompute.convnet import Convnet, ConvnetSizes, save_convnet
from tfbind_store.precompute.embedder import WindowEmbedder, make_window_embedder
from tfbind_store.precompute.enformer import EnformerEmbedder, random_trunk
from tfbind_store.precompute.run import embed_windows
from tfbind_store.prediction.asked_pairs import Asked
from tfbind_store.prediction.files import bins_of_loci
from tfbind_store.scoring.bins import load_run, score_bins
from tfbind_store.training.train import TrainConfig, train_head

OPTIONS = {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 8, "n_queries": 3}
ARCHITECTURE = {
    "dim": 24, "depth": 1, "heads": 2, "attn_dim_key": 6, "num_downsamples": 5, "dim_divisible_by": 4
}  # fmt: skip
ASKED = Asked(factors=("WEA",), biotype="cellA")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    torch.set_num_threads(1)
    made = make_planted(tmp_path_factory.mktemp("planted"))
    config = TrainConfig(steps=150, options=OPTIONS, bins_per_step=128, pairs_per_step=8, device="cpu", lr=5e-3)
    train_head(made.store, made.selection, config, "few")
    embed_windows(made.store, live_trunk("mean"), name="mean").require_complete()
    config = TrainConfig(steps=5, options=OPTIONS, bins_per_step=64, pairs_per_step=4, device="cpu", windows="mean")
    train_head(made.store, made.selection, config, "random")
    embed_windows(made.store, convnet(made), name="convnet").require_complete()
    train_head(made.store, made.selection, replace(config, windows="convnet"), "convnet")
    return made


def live_trunk(strand: str) -> EnformerEmbedder:
    return EnformerEmbedder(random_trunk(ARCHITECTURE, seed=2), strand=strand, device="cpu")


def convnet(planted: Planted) -> WindowEmbedder:
    """A convnet that reads both strands, a few bases further right."""
    folder = planted.store.path.parent / "convnet"
    if not folder.exists():
        torch.manual_seed(4)
        save_convnet(Convnet(ConvnetSizes(motifs=8, motif_bp=5, dim=8, wide=12, depth=2, bin_bp=BIN_BP)), folder, None)
    options = {"checkpoint": str(folder), "strand": "mean", "shift_bp": 3, "device": "cpu"}
    return make_window_embedder("convnet", options)


def explainer(planted: Planted, run: str = "few", **choices) -> Explainer:
    embedder = {"few": MotifEmbedder, "random": lambda: live_trunk("mean"), "convnet": lambda: convnet(planted)}[run]()
    return open_explainer(planted.store, run, InterpretConfig(asked=ASKED, **choices), embedder=embedder)


def lonely_sites(planted: Planted, chrom: str) -> list[int]:
    """WE motifs that no other motif of the family stands near, and whose surroundings lie in one window."""
    sites = sorted(planted.sites[chrom]["WE"])
    return [
        site
        for site in sites
        if sum(abs(other - site) < 150 for other in sites) == 1 and 60 < site % 512 < 440 and site < 11_000
    ]


def test_mutagenesis_finds_the_planted_bases(planted: Planted) -> None:
    explain, shares = explainer(planted), []
    for site in lonely_sites(planted, "chr1")[:10]:
        found = explain.explain(Locus("chr1", site - 25, site + 35))
        assert found.values.sum(axis=1) == pytest.approx(0, abs=1e-4)
        assert found.score > 0
        top = np.argsort(-found.importance)[: len(MOTIFS["WE"])] - 25
        shares.append(np.mean((top >= 0) & (top < len(MOTIFS["WE"]))))
    assert len(shares) >= 5
    assert np.mean(np.array(shares) == 1) >= 0.9


@pytest.mark.parametrize("over", ["max", "mean"])
def test_numbers_are_scores_of_sequences_written_out_across_two_windows(planted: Planted, over: str) -> None:
    """The locus lies on the border of two windows, which both keep some of its bins."""
    store, locus = planted.store, Locus("chr1", 505, 517)
    found = explainer(planted, over=over).explain(locus)
    run = load_run(store, "few")
    pairs = run.source.encode(run.head, np.array([0]), np.array([0]))
    chromosome = store.genome.codes("chr1", -600, 3_000)

    def score(position: int, letter: int) -> float:
        codes = chromosome.copy()
        codes[600 + position] = letter
        bins = []
        for window in (0, 1):
            # a window reads nothing beyond its own end
            end = store.tiling.read(window).end
            read = np.concatenate([codes[: 600 + end], np.full(100, 5, dtype=np.uint8)])
            (made,) = MotifEmbedder().embed([window], lambda at, read=read: read[600 + at.start : 600 + at.end],
                                            store.tiling)  # fmt: skip
            bins.append(made.values)
        values = np.concatenate(bins)[505 // BIN_BP : 516 // BIN_BP + 1]
        with torch.inference_mode():
            logits = run.head.score_pairs(torch.from_numpy(values), pairs)[:, 0].numpy()
        return float(logits.max() if over == "max" else logits.mean())

    for place in (0, 6, 7, 11):
        position = locus.start + place
        scores = np.array([score(position, letter) for letter in range(4)])
        np.testing.assert_allclose(found.values[place], scores - scores.mean(), atol=1e-4)
        assert found.score == pytest.approx(scores[found.codes[place]], abs=1e-4)


@pytest.mark.parametrize("run", ["random", "convnet"])
def test_gradients_are_the_slope_of_the_score(planted: Planted, run: str) -> None:
    explain = explainer(planted, run, method="gradient", over="mean")
    locus = Locus("chr1", 500, 530)
    found = explain.explain(locus)
    live, step = explain.live, 0.02 if run == "random" else 2e-3  # short, where maxima are taken
    assert live is not None

    def score(position: int, letter: int, change: float) -> float:
        logits = []
        for part in explain.parts(locus):
            sequence = live.sequence(live.read(part.read)).detach()
            read = live.read(part.read)
            if read.start <= position < read.end:
                sequence[0, position - read.start, letter] += change
            with torch.no_grad():
                dna = live.bins(sequence, part.bins)
                logits.append(explain.run.head.score_pairs(dna, explain.pairs)[:, 0])
        return float(torch.cat(logits).mean())

    for place in (0, 11, 12, 29):
        slopes = np.array(
            [
                (score(locus.start + place, letter, step) - score(locus.start + place, letter, -step)) / (2 * step)
                for letter in range(4)
            ]
        )
        np.testing.assert_allclose(found.values[place], slopes - slopes.mean(), rtol=0.05, atol=2e-3)
    assert np.abs(found.values).max() > 1e-2


@pytest.mark.parametrize("name", ["random", "convnet"])
@pytest.mark.parametrize("locus", [Locus("chr2", 700, 760), Locus("chr2", 1000, 1020)], ids=["within", "at the end"])
def test_both_methods_explain_the_stored_score(planted: Planted, name: str, locus: Locus) -> None:
    """The unchanged locus has the score that the run gives its stored bins, but for their float16.

    The second one ends with its window, past which an array that is shifted reads on.
    """
    store = planted.store
    run = load_run(store, name)
    first, last = bins_of_loci(store.tiling, np.array([1]), np.array([locus.start]), np.array([locus.end]))
    (block,) = score_bins(run.head, run.source, np.array([0]), np.array([0]), np.arange(first[0], last[0]))
    scores = [explainer(planted, name, method=method).explain(locus).score for method in ("ism", "gradient")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    (window,) = {int(found) // store.grid.n_bins for found in (first[0], last[0] - 1)}
    embedder = live_trunk("mean") if name == "random" else convnet(planted)
    (fresh,) = embedder.embed([window], lambda at: store.genome.codes(*at), store.tiling)
    inside = slice(first[0] - window * store.grid.n_bins, last[0] - window * store.grid.n_bins)
    pairs = run.source.encode(run.head, np.array([0]), np.array([0]))
    for precision, expected in ((np.float16, block.scores.max()), (np.float32, scores[0])):
        rows = torch.from_numpy(fresh.values[inside].astype(precision).astype(np.float32))
        with torch.inference_mode():
            logits = run.head.score_pairs(rows, pairs)[:, 0]
        assert float(logits.max()) == pytest.approx(expected, abs=1e-4)


def test_an_embedder_without_gradients_says_so(planted: Planted) -> None:
    with pytest.raises(ConfigError, match="gives no gradient"):
        explainer(planted, method="gradient")


def contribution(start: int, letters: str, importance: list[float]) -> Contribution:
    codes = np.array(["ACGTN".index(letter) for letter in letters], dtype=np.uint8)
    values = np.zeros((len(codes), 4), dtype=np.float32)
    values[np.arange(len(codes)), np.minimum(codes, 3)] = importance
    values[codes == 4] = np.nan
    return Contribution(Locus("chr2", start, start + len(codes)), codes, values, 1.5)


def test_tracks_average_where_loci_overlap_and_leave_out_n(tmp_path: Path) -> None:
    found = [contribution(10, "ACNG", [1, 2, 0, 3]), contribution(13, "GT", [5, -1])]
    for name in ("t.bedGraph", "t.bw", "deep/er/t.parquet"):
        write_contributions(tmp_path / name, found, ("WEA", "cellA"), {"chr2": 40, "chr1": 50})
    lines = (tmp_path / "t.bedGraph").read_text().split("\n")
    assert lines == ["chr2\t10\t11\t1", "chr2\t11\t12\t2", "chr2\t13\t14\t4", "chr2\t14\t15\t-1", ""]
    with pyBigWig.open(str(tmp_path / "t.bw")) as file:
        assert file.chroms() == {"chr1": 50, "chr2": 40}
        assert file.intervals("chr2") == ((10, 11, 1.0), (11, 12, 2.0), (13, 14, 4.0), (14, 15, -1.0))
    table = Catalog.read_parquet(tmp_path / "deep/er/t.parquet")
    assert table["base"].tolist() == list("ACNGGT")
    assert table["position"].tolist() == [10, 11, 12, 13, 13, 14]
    assert table["locus"].tolist() == ["chr2:10-14"] * 4 + ["chr2:13-15"] * 2


def test_arrays_are_as_modisco_reads_them(tmp_path: Path) -> None:
    found = [contribution(10, "ACN", [1, 2, 0]), contribution(20, "GTT", [3, -1, 0])]
    files = write_contributions(tmp_path / "m.npz", found, ("WEA", "cellA"), {})
    sequences, values = (np.load(file)["arr_0"] for file in files)
    assert [file.name for file in files] == ["m.sequences.npz", "m.contributions.npz"]
    assert sequences.shape == values.shape == (2, 4, 3)
    assert sequences[0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert values[0].tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 0], [0, 0, 0]]


def test_a_logo_has_a_letter_for_each_base_that_counts(tmp_path: Path) -> None:
    pytest.importorskip("logomaker")
    one = contribution(10, "ACGTN" * 30, [1.0, -0.5, 0.2, 0.7, 0.0] * 30)
    (file,) = write_contributions(tmp_path / "l.svg", [one], ("WEA", "cellA"), {})
    svg = file.read_text()
    assert svg.startswith("<svg")
    assert len(svg) < 2_000_000
    many = write_contributions(tmp_path / "l.svg", [one, contribution(9, "AC", [1, 1])], ("WEA", "cellA"), {})
    assert [path.name for path in many] == ["l.chr2-10-160.svg", "l.chr2-9-11.svg"]


@pytest.mark.parametrize(
    ("out", "at", "width", "said"),
    [
        ("x.txt", ["chr1:10-20"], None, "no kind of file"),
        ("x.npz", ["chr1:10-20", "chr1:10-40"], None, "one width"),
        ("x.bw", ["chr1:2-8"], 50, "no locus is left"),
        ("x.bw", ["chr1:0-12000"], None, "too long for mutagenesis"),
        ("x.bw", ["chr1:2-8"], 0, "width_bp is 0"),
        ("x.bw", ["chr9:2-8"], None, "no chromosome"),
        ("x.bw", ["chr1:8-2"], None, "does not lie on chr1"),
        ("x.bw", ["chr1:11990-12001"], None, "does not lie on chr1"),
        ("x.bw", ["chr1"], None, "is no locus"),
        ("x.bw", ["chr1:,-,"], None, "is no locus"),
    ],
)
def test_what_cannot_be_explained_is_refused_before_the_work(
    planted: Planted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    out: str,
    at: list[str],
    width: int | None,
    said: str,
) -> None:
    monkeypatch.setattr(interpret, "MAX_LOCUS_BP", 10_000)
    config = InterpretConfig(asked=ASKED)
    with pytest.raises((ConfigError, LocusError), match=said):
        interpret_loci(planted.store, "few", config, [tmp_path / out], at=at, width_bp=width, embedder=MotifEmbedder())
    assert list(tmp_path.iterdir()) == []


def test_one_factor_at_a_time() -> None:
    with pytest.raises(ConfigError, match="2 factors"):
        InterpretConfig(asked=Asked(factors=("WEA", "WEB")))


def test_loci_that_would_leave_the_chromosome_are_counted(planted: Planted, tmp_path: Path) -> None:
    (tmp_path / "l.bed").write_text("chr1\t100\t140\n1\t0\t10\nchr4\t6000\t6005\n")
    result = interpret_loci(
        planted.store, "few", InterpretConfig(asked=ASKED), [tmp_path / "o.npz"],
        bed=tmp_path / "l.bed", width_bp=30, embedder=MotifEmbedder(),
    )  # fmt: skip
    assert (result.n_loci, result.n_bases, result.n_left_out) == (1, 30, 2)
    assert resized([Locus("c", 4, 5)], 9, {"c": 9}) == ([Locus("c", 0, 9)], 0)
    assert json.dumps([str(path) for path in result.files])
    sequence = np.load(tmp_path / "o.sequences.npz")["arr_0"][0]
    assert (LETTERS[sequence.argmax(axis=0)] == LETTERS[planted.store.genome.codes("chr1", 105, 135)]).all()
