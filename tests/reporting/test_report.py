"""The report page: literal runs in, one self-contained page out."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tfbind_store.drawing import figures
from tfbind_store.drawing.loci import Gene
from tfbind_store.errors import InputFileError, StoreMissing
from tfbind_store.reporting import figures as report_figures
from tfbind_store.reporting import report
from tfbind_store.reporting.report import leaks, render
from tfbind_store.reporting.runs import Run, read_genes


def scores(run: str, n_factors: int = 6) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for index in range(n_factors):
        for scorer, share in (("model", 1.0), ("nearest", 0.5), ("prevalence", 0.02), ("oracle", 1.2)):
            auprc = min(1.0, share * (0.1 + 0.1 * index))
            rows.append(
                {
                    "run": run,
                    "scorer": scorer,
                    "factor": "ARG5,6" if index == 0 else f"<b>{index}</b>",
                    "biotype": "BY4741",
                    "experiment": f"E{index}",
                    "chroms": "chrIV",
                    "holdout": "seen" if index < 4 else "unseen_factor",
                    "n_bins": 10_000,
                    "n_positive": 100,
                    "prevalence": 0.01,
                    "auroc": 0.5 + auprc / 2,
                    "auprc": auprc,
                    "auprc_over_prevalence": auprc / 0.01,
                    **{f"recall_at_fdr_{fdr}": auprc * fdr / 100 for fdr in (5, 10, 25, 50)},
                    "auprc_low": auprc * 0.9,
                    "auprc_high": auprc * 1.1,
                    "model_ahead": 0.99,
                    "nearest": "RAP1",
                    "similarity": 0.1 + 0.05 * (index % 10),
                }
            )
    return rows


def loci() -> list[dict[str, object]]:
    return [
        {
            "holdout": "seen",
            "locus": "chrIV:0-1,280",
            "chrom": "chrIV",
            "start_bp": 128 * place,
            "end_bp": 128 * (place + 1),
            "factor": factor,
            "biotype": "BY4741",
            "experiment": factor,
            "probability": 0.1 * place / 10,
            "label": [0.0, 1.0, float("nan")][place % 3],
            "signal": float(place),
        }
        for factor in ("REB1", "RAP1")
        for place in range(10)
    ]


def make_run(name: str = "adapter", n_factors: int = 6) -> Run:
    return Run(
        name=name,
        path=Path("yeast.store/runs") / name,
        header={
            "head": "adapter",
            "selection": {"sql": "chrom <> 'chrVII'", "counts": {"x": 1}},
            "trained_on": {"factors": ["REB1", "RAP1"], "chromosomes": ["chrI"]},
            "trunk_trained_on": None,
        },
        scores=scores(name, n_factors),
        reliability=[
            {"holdout": "seen", "kind": kind, "low": 0.0, "high": 1.0, "n": 10, "predicted": p, "observed": p * scale}
            for kind, scale in (("own", 0.5), ("calibrated", 1.0))
            for p in (0.01, 0.1, 0.5)
        ],
        loci=loci(),
        evaluation={"rule": "summit", "by": {"chrom": [breakdown("chrIV"), breakdown("chrXVI")]}},
        curves=[
            {"curve": "pr", "holdout": "seen", "scorer": "model", "x": x, "y": 1 - x, "n_factors": 6}
            for x in (0.0, 0.5, 1.0)
        ],
        log=[{"step": 10 * e, "train_loss": 1 / (e + 1), "valid_loss": 2.0, "valid_auroc": 0.9} for e in range(3)],
    )


def breakdown(chrom: str) -> dict[str, object]:
    numbers = {"n_experiments": 6, "n_counted": 5, "auroc": 0.9, "auprc": 0.1, "prevalence": 0.01}
    return {"holdout": "seen", "chrom": chrom, **numbers}


def page(*runs: Run) -> str:
    genes = {"chrIV": [Gene("YDL001W", 300, 500, "+"), Gene("<i>", 700, 701, "-"), Gene("far", 9_000, 9_900, "+")]}
    return render(runs, report_figures.pictures(runs, genes))


class Outline(HTMLParser):
    """Collects what a page opens, and what it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"src", "href", "xlink:href", "data", "srcset"} and not (value or "").startswith("#"):
                self.loads.append(f"{tag} {name}={value}")


@pytest.fixture(scope="module")
def html() -> str:
    return page(make_run())


class TestPage:
    def test_loads_nothing_from_anywhere(self, html: str) -> None:
        assert Outline(html).loads == []
        assert "@import" not in html
        assert not re.search(r"url\((?!#)", html)

    def test_says_the_scores_and_the_baseline(self, html: str) -> None:
        assert "seen: median AUROC 0.625, median AUPRC 0.250" in html
        assert "model ahead in 4 of 4" in html

    def test_says_what_was_trained_on_what(self, html: str) -> None:
        assert "chrom &lt;&gt; &#39;chrVII&#39;" in html
        assert "2: REB1, RAP1" in html
        assert "trunk trained on" in html

    def test_names_from_files_are_text_not_markup(self, html: str) -> None:
        assert "<b>1</b>" not in html
        assert "&lt;b&gt;1&lt;/b&gt;" in html

    def test_every_figure_has_an_alternative_text(self, html: str) -> None:
        assert html.count("<svg") == html.count('role="img"') == html.count("<figcaption>") == 10

    def test_ids_are_unique(self, html: str) -> None:
        ids = Outline(html).ids
        assert {"headline", "factors", "loss"} < set(ids)
        assert len(ids) == len(set(ids))

    def test_two_runs_stand_side_by_side(self) -> None:
        html = page(make_run(), make_run("linear"))
        assert "seen, adapter" in html
        assert "seen, linear" in html
        side_by_side = html[html.index('id="runs"') : html.index('id="figures"')]
        assert re.search(r"<td>seen</td><td>adapter</td>.*?<td>linear</td>", side_by_side)
        assert "0 of 4" in side_by_side

    def test_a_single_run_is_compared_with_none(self, html: str) -> None:
        assert "Runs side by side" not in html

    def test_kinds_of_holdout_come_in_the_order_of_how_much_was_held_out(self, html: str) -> None:
        groups = re.findall(r'scope="rowgroup">([^<]+)<', html)
        assert groups == ["seen", "unseen factor"]

    def test_the_best_baseline_comes_first(self, html: str) -> None:
        table = html[html.index('id="headline"') : html.index('id="figures"')]
        assert table.index("<td>nearest</td>") < table.index("<td>prevalence</td>")

    def test_intervals_and_how_often_the_model_is_ahead_stand_in_the_table(self, html: str) -> None:
        assert "0.090 to 0.110" in html
        assert "(in 4 clearly; clearly behind in 0)" in html

    def test_chromosomes_are_broken_down_where_there_are_several(self, html: str) -> None:
        assert "By chromosome" in html
        assert "<td>chrXVI</td>" in html

    def test_loci_show_prediction_measurement_signal_and_genes(self, html: str) -> None:
        locus = html[html.index('id="locus_1"') :]
        locus = locus[: locus.index("</figure>")]
        for text in (">REB1 (BY4741)<", ">RAP1 (BY4741)<", ">signal<", ">YDL001W<", "&lt;i&gt;"):
            assert text in locus, text
        assert ">far<" not in locus
        assert "chrIV:0-1,280, seen, run adapter" in locus

    def test_leaks_that_were_allowed_are_said_first(self) -> None:
        run = make_run()
        selection = {"config": {"allow_leaks": ["paralog"]}, "leaks": [{"kind": "paralog", "names": ["SOX2", "SOX3"]}]}
        leaking = dataclasses.replace(run, header={**run.header, "selection": selection})
        assert leaks(run) == []
        assert leaks(leaking) == ["allowed by name: paralog", "kind paralog; names SOX2, SOX3"]
        html = page(leaking)
        assert 0 < html.index("allowed by name: paralog") < html.index('id="headline"')

    def test_a_run_of_an_older_evaluation_has_a_page_too(self) -> None:
        run = make_run()
        kept = [
            {
                key: row[key]
                for key in row
                if key not in ("auprc_low", "auprc_high", "model_ahead", "nearest", "similarity")
            }
            for row in run.scores
        ]
        old = dataclasses.replace(run, scores=kept, reliability=[], loci=[], evaluation={})
        assert "Factor by factor" in page(old)

    def test_a_page_of_many_factors_stays_small(self) -> None:
        assert len(page(make_run(n_factors=1500), make_run("linear", 1500)).encode()) < 5_000_000

    def test_the_same_run_gives_the_same_bytes(self, html: str) -> None:
        assert page(make_run()) == html


class TestWriteReport:
    @pytest.fixture
    def run_dir(self, tmp_path: Path) -> Path:
        from tfbind_store.catalog.database import Catalog

        folder = tmp_path / "runs" / "adapter"
        folder.mkdir(parents=True)
        rows = scores("adapter")
        Catalog.write_parquet(folder / "scores.parquet", {key: [row[key] for row in rows] for key in rows[0]})
        return folder

    def test_writes_the_page_and_its_figures(self, run_dir: Path) -> None:
        written = report.write_report([run_dir])
        assert written.page == run_dir / "report.html"
        assert written.page.read_text(encoding="utf-8").startswith("<!doctype html>")
        assert all(file.read_text(encoding="utf-8").startswith("<svg") for file in written.figures)
        assert sorted(p.name for p in run_dir.iterdir()) == ["report.html", "report_figures", "scores.parquet"]

    def test_a_run_without_scores_says_how_to_get_them(self, tmp_path: Path) -> None:
        with pytest.raises(StoreMissing, match="tfbind evaluate"):
            report.write_report([tmp_path])

    def test_a_path_that_is_no_run_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(StoreMissing, match="no such run"):
            report.write_report([tmp_path / "nowhere"])


def test_a_figure_is_svg_of_flexible_width_with_text_as_text() -> None:
    picture = figures.lines(
        "loss", "Loss.", {"training": [(0, 1), (1, float("nan")), (2, 0.5)]}, x_label="epoch", y_label="loss"
    )
    head = picture.svg[: picture.svg.index(">")]
    assert "viewBox" in head
    assert "width=" not in head
    assert ">epoch</text>" in picture.svg


def test_more_groups_than_colours_are_all_drawn_and_names_may_hold_dollars() -> None:
    points = {f"group {number} $x^2$": [(0.1 * number, 0.5)] for number in range(10)}
    svg = figures.scatter_counts("n", "N.", points, x_label="$\\foo$", y_label="y", is_count=False).svg
    assert all(f"group {number} $x^2$" in svg for number in range(10))
    against = figures.scatter_against("m", "M.", points, x_label="x", y_label="$a$", log=False).svg
    assert all(f"group {number} $x^2$" in against for number in range(10))


def test_runs_of_two_stores_that_are_called_alike_are_told_apart() -> None:
    named = report.named_apart([make_run("a"), make_run("b"), make_run("a")])
    assert [run.name for run in named] == ["a (1)", "b", "a (2)"]
    assert {case.run for case in named[2].cases} == {"a (2)"}


class TestGenes:
    def test_bed_columns_are_names_and_strands_and_chromosomes_follow_the_store(self, tmp_path: Path) -> None:
        path = tmp_path / "genes.bed"
        path.write_text("track name=x\nIV\t10\t20\tYDL001W\t0\t-\n# note\nchrV\t1\t2\n")
        assert read_genes(path, {"IV": "chrIV"}) == {
            "chrIV": [Gene("YDL001W", 10, 20, "-")],
            "chrV": [Gene("", 1, 2, ".")],
        }

    @pytest.mark.parametrize("line", ["chrI 1 2", "chrI\t1", "chrI\t5\t4", "chrI\tx\t9"])
    def test_what_is_no_bed_is_refused_with_its_line(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / "genes.bed"
        path.write_text(f"chrI\t1\t2\n{line}\n")
        with pytest.raises(InputFileError, match="no row of a BED file") as caught:
            read_genes(path, {})
        assert caught.value.where == f"{path}:2"


def test_a_saved_figure_has_a_size_of_its_own() -> None:
    picture = figures.lines("loss", "Loss.", {"training": [(0, 1), (1, 0.5)]}, x_label="epoch", y_label="loss")
    assert re.match(r'<svg width="\d+" height="\d+" ', figures.sized(picture.svg))


def test_many_dots_become_one_image() -> None:
    points = {"seen": [(0.01 * n, 0.5) for n in range(1, figures.MOST_DOTS + 2)]}
    picture = figures.scatter_counts("many", "Many.", points, x_label="x", y_label="y")
    assert picture.svg.count("<use") < 100
    assert "data:image/png;base64" in picture.svg
