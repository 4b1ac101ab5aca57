"""The report page: literal runs in, one self-contained page out."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tfbind_store import figures, report
from tfbind_store.errors import StoreMissing
from tfbind_store.report import Run, render


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
                }
            )
    return rows


def make_run(name: str = "adapter") -> Run:
    return Run(
        name=name,
        path=Path("yeast.store/runs") / name,
        header={
            "head": "adapter",
            "selection": {"sql": "chrom <> 'chrVII'", "counts": {"x": 1}},
            "trained_on": {"factors": ["REB1", "RAP1"], "chromosomes": ["chrI"]},
            "trunk_trained_on": None,
        },
        scores=scores(name),
        curves=[
            {"curve": "pr", "holdout": "seen", "scorer": "model", "x": x, "y": 1 - x, "n_factors": 6}
            for x in (0.0, 0.5, 1.0)
        ],
        log=[{"step": 10 * e, "train_loss": 1 / (e + 1), "valid_loss": 2.0, "valid_auroc": 0.9} for e in range(3)],
    )


def page(*runs: Run) -> str:
    return render(runs, report._pictures(runs))


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
        assert html.count("<svg") == html.count('role="img"') == html.count("<figcaption>") == 7

    def test_ids_are_unique(self, html: str) -> None:
        ids = Outline(html).ids
        assert {"headline", "factors", "loss"} < set(ids)
        assert len(ids) == len(set(ids))

    def test_two_runs_stand_side_by_side(self) -> None:
        html = page(make_run(), make_run("linear"))
        assert "seen, adapter" in html
        assert "seen, linear" in html

    def test_the_same_run_gives_the_same_bytes(self, html: str) -> None:
        assert page(make_run()) == html


class TestWriteReport:
    @pytest.fixture
    def run_dir(self, tmp_path: Path) -> Path:
        from tfbind_store.catalog import Catalog

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
