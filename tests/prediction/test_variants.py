"""Variants through a live embedder: recomputed by hand, and every kind of row that cannot be scored."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.planted import BIN_BP, LETTERS, MOTIFS, N_BINS, MotifEmbedder, Planted, make_planted
from tfbind_store.errors import ConfigError, VariantFileError
from tfbind_store.loci import Tiling
from tfbind_store.precompute.embedder import Codes, WindowEmbedder, WindowEmbedding
from tfbind_store.prediction.asked_pairs import Asked
from tfbind_store.prediction.variants import TSV_COLUMNS, VariantConfig, changed_codes, score_vcf
from tfbind_store.scoring.bins import load_run
from tfbind_store.training.train import TrainConfig, train_head

HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
CONFIG = VariantConfig(asked=Asked(factors=("WEA", "OLA"), biotype="cellA"), flank_bp=32)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    made = make_planted(tmp_path_factory.mktemp("planted"))
    options = {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 8, "n_queries": 3}
    config = TrainConfig(steps=150, options=options, bins_per_step=128, pairs_per_step=8, device="cpu", lr=5e-3)
    train_head(made.store, made.selection, config, "few")
    return made


def text(planted: Planted, chrom: str, start: int, end: int) -> str:
    return LETTERS[planted.store.genome.codes(chrom, start, end)].tobytes().decode()


def run_vcf(planted: Planted, folder: Path, rows: str, embedder: WindowEmbedder | None = None) -> list[dict[str, str]]:
    (folder / "v.vcf").write_text(HEADER + rows)
    score_vcf(planted.store, "few", folder / "v.vcf", folder / "o.tsv", CONFIG, embedder=embedder or MotifEmbedder())
    lines = [line.split("\t") for line in (folder / "o.tsv").read_text().splitlines()]
    assert tuple(lines[0]) == TSV_COLUMNS
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def motif_site(planted: Planted) -> int:
    """A WE motif of chr1 well inside its window."""
    return next(s for s in planted.sites["chr1"]["WE"] if 100 < s % 512 < 400)


def test_breaking_a_motif_lowers_its_own_factor(planted: Planted, tmp_path: Path) -> None:
    site = motif_site(planted)
    ref = text(planted, "chr1", site + 3, site + 4)
    alt = "A" if ref != "A" else "C"
    rows = run_vcf(planted, tmp_path, f"chr1\t{site + 4}\trs1\t{ref}\t{alt}\t.\t.\t.\n")
    assert [row["factor"] for row in rows] == ["WEA", "OLA"]
    assert float(rows[0]["difference"]) < -1
    assert abs(float(rows[1]["difference"])) < abs(float(rows[0]["difference"]))


def test_scores_are_those_of_the_sequence_written_out(planted: Planted, tmp_path: Path) -> None:
    """An insertion, a deletion and a substitution against strings put together by hand."""
    site, store = motif_site(planted), planted.store
    window = int(store.tiling.address([0], [site]).window[0])
    kept = store.tiling.kept(window)
    run = load_run(store, "few")
    pairs = run.source.encode(run.head, np.array([0]), np.array([0]))
    whole = text(planted, "chr1", 0, 12_000)
    for ref, alt in (("", "GATTACA"), ("T", ""), ("TGA", "C")):
        anchor = whole[site - 1]
        ref, alt = anchor + whole[site : site + len(ref)], anchor + alt
        (row, _) = run_vcf(planted, tmp_path, f"chr1\t{site}\t.\t{ref}\t{alt}\t.\t.\t.\n")
        changed = whole[: site - 1] + alt + whole[site - 1 + len(ref) :]
        scores = []
        for sequence, allele in ((whole, ref), (changed, alt)):
            codes = np.searchsorted(LETTERS, np.frombuffer(sequence.encode(), dtype=np.uint8)).astype(np.uint8)
            (made,) = MotifEmbedder().embed([window], lambda at, codes=codes: codes[at.start : at.end], store.tiling)
            with torch.inference_mode():
                logits = run.head.score_pairs(torch.from_numpy(made.values.astype(np.float16)), pairs)[:, 0].numpy()
            first = (site - 1 - 32 - kept.start) // BIN_BP
            last = (site - 1 + len(allele) - 1 + 32 - kept.start) // BIN_BP
            scores.append(logits[first : last + 1].max())
        assert float(row["ref_logit"]) == pytest.approx(scores[0], abs=1e-4)
        assert float(row["alt_logit"]) == pytest.approx(scores[1], abs=1e-4)
        assert float(row["difference"]) == pytest.approx(scores[1] - scores[0], abs=1e-4)


class Anywhere(MotifEmbedder):
    """Gives the same numbers wherever a window lies, and counts how many it sees at once."""

    def __init__(self, at_once: list[int]) -> None:
        self.at_once = at_once

    def remembering(self) -> Anywhere:
        return self

    def embed(self, windows: Sequence[int], codes: Codes, tiling: Tiling) -> Iterator[WindowEmbedding]:
        self.at_once.append(len(windows))
        for made in super().embed(windows, codes, tiling):
            made.values[:, len(MOTIFS) :] = 0
            yield made


def test_alleles_of_one_window_go_together_and_score_as_each_alone(planted: Planted, tmp_path: Path) -> None:
    site = motif_site(planted)
    bases = text(planted, "chr1", site - 20, site + 40)
    rows = [
        f"chr1\t{site - 20 + i + 1}\t.\t{bases[i]}\t{','.join('ACGT'.replace(bases[i], ''))}\t.\t.\t.\n"
        for i in range(0, 60, 4)
    ]
    rows.insert(5, "chr9\t5\t.\tA\tC\t.\t.\t.\n")
    seen: list[int] = []
    together = run_vcf(planted, tmp_path, "".join(rows), Anywhere(seen))
    assert sum(seen) == 15 * 3 + 1  # every allele once, the reference once
    assert max(seen) > 10
    alone: list[dict[str, str]] = []
    for number, row in enumerate(rows):
        found = run_vcf(planted, tmp_path, row, Anywhere([]))
        alone += [{**one, "line": str(3 + number)} for one in found]
    assert together == alone
    assert len({row["alt_logit"] for row in together}) > 3


def test_bins_in_the_next_window_are_counted(planted: Planted, tmp_path: Path) -> None:
    def beyond(start: int, ref: str, alt: str) -> str:
        return run_vcf(planted, tmp_path, f"chr1\t{start + 1}\t.\t{ref}\t{alt}\t.\t.\t.\n")[0]["bins_beyond"]

    def at(start: int) -> str:
        return text(planted, "chr1", start, start + 1)

    def other(start: int) -> str:
        return "ACGT".replace(at(start), "")[0]

    edge = N_BINS * BIN_BP
    assert beyond(200, at(200), other(200)) == "0"
    assert beyond(edge - 1, at(edge - 1), other(edge - 1)) == "1"
    assert beyond(edge, at(edge), other(edge)) == "1"
    assert beyond(edge - 1, at(edge - 1), at(edge - 1) + "ACGT" * 8) == "2"
    assert beyond(0, at(0), other(0)) == "0"  # there is nothing before the chromosome
    assert beyond(11_999, at(11_999), other(11_999)) == "0"


def test_every_nasty_row_is_written_with_its_reason(planted: Planted, tmp_path: Path) -> None:
    base = text(planted, "chr1", 999, 1_000)
    other = "ACGT".replace(base, "")
    rows = run_vcf(
        planted,
        tmp_path,
        f"chr1\t1000\ta\t{base}\t{other[0]},{other[1]},<DEL>,*\t.\t.\t.\n"
        f"chr1\t1000\tb\t{other[0]}\t{base}\t.\t.\t.\n"
        f"1\t1000\tc\t{base.lower()}\t{other[0].lower()}\t.\t.\t.\n"
        f"chrZ\t1000\td\t{base}\t{other[0]}\t.\t.\t.\n"
        f"chr1\t12001\te\tA\tC\t.\t.\t.\n"
        f"chr1\t0\tf\tA\tC\t.\t.\t.\n"
        f"chr1\t1000\tg\t{base}\t{base}\t.\t.\t.\n"
        f"chr1\t1000\th\t{base}\tR\t.\t.\t.\n"
        f"chr1\t1000\ti\t{base}\t{'A' * 300}\t.\t.\t.\n"
        f"chr1\t1000\tj\t{base}\tG]17:198982]\t.\t.\t.\n"
        f"chr1\t1000\tk\t{base}\t.\t.\t.\t.\n",
    )
    said = {(row["id"], row["allele"]): row["skipped"] for row in rows if row["factor"] == "WEA"}
    assert said == {
        ("a", "1"): "",
        ("a", "2"): "",
        ("a", "3"): "symbolic_allele",
        ("a", "4"): "symbolic_allele",
        ("b", "1"): "ref_is_not_the_genome",
        ("c", "1"): "",
        ("d", "1"): "unknown_chromosome",
        ("e", "1"): "off_chromosome",
        ("f", "1"): "off_chromosome",
        ("g", "1"): "same_as_ref",
        ("h", "1"): "bad_alt",
        ("i", "1"): "too_long",
        ("j", "1"): "symbolic_allele",
        ("k", "1"): "symbolic_allele",
    }
    plain = [row["difference"] for row in rows if row["factor"] == "WEA" and row["id"] in "ac" and row["allele"] == "1"]
    assert plain[0] == plain[1]


def test_a_vcf_comes_out_whole_with_a_field_more(planted: Planted, tmp_path: Path) -> None:
    base = text(planted, "chr1", 999, 1_000)
    alt = "ACGT".replace(base, "")[0]
    content = HEADER + f"chr1\t1000\ta\t{base}\t{alt},<DEL>\t9\tPASS\tDP=4\tGT\t0/1\n"
    with gzip.open(tmp_path / "v.vcf.gz", "wt") as file:
        file.write(content)
    result = score_vcf(
        planted.store, "few", tmp_path / "v.vcf.gz", tmp_path / "o.vcf", CONFIG, embedder=MotifEmbedder()
    )
    assert (result.n_variants, result.n_scored, result.skipped) == (2, 1, {"symbolic_allele": 1})
    lines = (tmp_path / "o.vcf").read_text().splitlines()
    assert lines[1].startswith("##INFO=<ID=TFBIND,Number=A")
    cells = lines[-1].split("\t")
    assert cells[:7] == ["chr1", "1000", "a", base, f"{alt},<DEL>", "9", "PASS"]
    assert cells[8:] == ["GT", "0/1"]
    first, second = cells[7].removeprefix("DP=4;TFBIND=").split(",")
    assert [part.split(":")[0] for part in first.split("|")] == ["WEA", "OLA"]
    assert second == "skipped:symbolic_allele"


def test_what_was_scored_before_is_scored_anew_and_not_twice(planted: Planted, tmp_path: Path) -> None:
    base = text(planted, "chr1", 999, 1_000)
    (tmp_path / "v.vcf").write_text(
        HEADER + f"chr1\t1000\ta\t{base}\t{'ACGT'.replace(base, '')[0]}\t9\tPASS\tDP=4;END=7\n"
    )
    embedder = MotifEmbedder()
    score_vcf(planted.store, "few", tmp_path / "v.vcf", tmp_path / "one.vcf", CONFIG, embedder=embedder)
    score_vcf(planted.store, "few", tmp_path / "one.vcf", tmp_path / "two.vcf", CONFIG, embedder=embedder)
    assert (tmp_path / "two.vcf").read_text() == (tmp_path / "one.vcf").read_text()
    assert (tmp_path / "one.vcf").read_text().splitlines()[-1].split("\t")[7].startswith("DP=4;END=7;TFBIND=WEA:")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("chr1\t1\t.\tA\tC\n", "no header line"),
        ("##x\n", "no header line"),
        (HEADER + "chr1 1 . A C\n", "a row needs"),
        (HEADER + "chr1\tx\t.\tA\tC\n", "POS is 'x'"),
    ],
)
def test_what_is_no_vcf_is_refused_and_nothing_is_written(
    planted: Planted, tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "v.vcf").write_text(content)
    with pytest.raises(VariantFileError, match=said):
        score_vcf(planted.store, "few", tmp_path / "v.vcf", tmp_path / "o.tsv", CONFIG, embedder=MotifEmbedder())
    assert [path.name for path in tmp_path.iterdir()] == ["v.vcf"]


def test_another_ending_is_refused(planted: Planted, tmp_path: Path) -> None:
    (tmp_path / "v.vcf").write_text(HEADER)
    with pytest.raises(ConfigError, match="no kind of file"):
        score_vcf(planted.store, "few", tmp_path / "v.vcf", tmp_path / "o.txt", CONFIG, embedder=MotifEmbedder())


def test_changed_codes_equal_a_string_cut_and_joined_anywhere(planted: Planted) -> None:
    whole = text(planted, "chr3", 0, 4_000)
    for start, n_ref, alt in ((100, 1, "ACGT"), (100, 7, "G"), (0, 1, "TT"), (3_998, 2, "C")):
        joined = "P" * 50 + whole[:start] + alt + whole[start + n_ref :] + "P" * 50
        read = changed_codes(planted.store.genome, "chr3", start, n_ref, alt)
        for first, last in ((-20, 30), (90, 110), (101, 102), (103, 140), (3_970, 4_010), (99, 100)):
            found = "".join("ACGTNP"[code] for code in read(first, last))
            assert found == joined[first + 50 : last + 50].ljust(last - first, "P")
