"""The local page: what each address answers, who is refused, and how it looks in a real browser."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.browser import Browser, find
from tests.planted import Planted, make_planted
from tfbind_store.browsing.browse import cell, make_app, page, serve
from tfbind_store.errors import ConfigError
from tfbind_store.evaluation.evaluate import EvaluateConfig, evaluate_run
from tfbind_store.heads.losses import LossConfig
from tfbind_store.reporting.report import write_report
from tfbind_store.store.folder import Store
from tfbind_store.training.train import TrainConfig, train_head

needs_browser = pytest.mark.skipif(find() is None, reason="no browser on this machine")
BASE = "http://127.0.0.1:8427"
OPTIONS = {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 8, "n_queries": 3}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    torch.set_num_threads(1)
    made = make_planted(tmp_path_factory.mktemp("planted"))
    config = TrainConfig(steps=120, options=OPTIONS, bins_per_step=128, pairs_per_step=8, device="cpu", lr=5e-3)
    train_head(made.store, made.selection, config, "few")
    evaluate_run(made.store, "few", EvaluateConfig())
    write_report([made.store.run_dir("few")])
    (made.store.path / "runs" / "empty").mkdir()
    return made


@pytest.fixture(scope="module")
def client(planted: Planted) -> FlaskClient:
    return make_app(planted.store).test_client()


def get(client: FlaskClient, path: str, **headers: str) -> TestResponse:
    return client.get(path, base_url=BASE, headers=headers)


class Well(HTMLParser):
    """Checks that elements close in order."""

    VOID = frozenset({"meta", "link", "input", "br", "path", "use", "rect", "image"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.stack.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action")]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        assert self.stack.pop() == tag


def checked(response: TestResponse) -> str:
    """Return a page's text; it is whole, points nowhere else and holds no script."""
    text = response.get_data(as_text=True)
    parser = Well()
    parser.feed(text)
    assert parser.stack == []
    assert all(link.startswith(("/", "#", "?")) for link in parser.links)
    assert "<script" not in text
    return text


def test_the_overview_counts_what_the_catalog_holds(client: FlaskClient, planted: Planted) -> None:
    text = checked(get(client, "/"))
    with planted.store.reader() as catalog:
        for view in ("peaks", "experiments", "chromosomes"):
            ((count,),) = catalog.rows(f"SELECT count(*) FROM {view}")
            assert f'<a href="/tables/{view}">{view}</a></td><td class="n">{count:,}<' in text
    assert all(name in text for name in planted.store.array_names())


def test_tables_come_in_pages(client: FlaskClient) -> None:
    first, second = (checked(get(client, f"/tables/peaks?page={number}")) for number in (0, 1))
    assert "here 1 to 100" in first
    assert "here 101 to 200" in second
    assert 'rel="next"' in first
    assert 'rel="prev"' not in first
    assert 'rel="prev"' in second


def test_sql_answers_with_rows_and_csv(client: FlaskClient) -> None:
    query = quote("SELECT factor, count(*) AS n FROM experiments GROUP BY factor ORDER BY factor")
    text = checked(get(client, f"/sql?q={query}"))
    assert "8 rows" in text
    assert '<td>OGA</td><td class="n">2</td>' in text
    csv = get(client, f"/sql.csv?q={query}")
    assert csv.mimetype == "text/csv"
    assert csv.get_data(as_text=True).splitlines()[:2] == ["factor,n", "OGA,2"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT * FROM peks", "peks"),
        ("DROP TABLE data.peaks", "SELECT"),
        ("SELECT 1; SELECT 2", "one"),
        ("SELECT * FROM read_csv('/etc/passwd')", ""),
        ("COPY (SELECT 1) TO '/tmp/x.csv'", ""),
        ("ATTACH '/tmp/x.db'", ""),
    ],
)
def test_bad_sql_is_said_and_kept_in_the_box(client: FlaskClient, query: str, said: str) -> None:
    for address in ("/sql", "/sql.csv"):
        response = get(client, f"{address}?q={quote(query)}")
        text = checked(response)
        assert response.status_code == 400
        assert 'role="alert"' in text
        assert "root:" not in text
        assert said.lower() in text.lower()
        assert "Traceback" not in text
    assert query.split("'")[0] in get(client, f"/sql?q={quote(query)}").get_data(as_text=True)


def test_what_users_write_is_never_markup(client: FlaskClient) -> None:
    nasty = "</textarea><script>alert(1)</script>"
    for path in ("/sql?q=", "/locus?at=", "/locus?factor=", "/locus?run=", "/tables/", "/runs/", "/sql.csv?q="):
        text = get(client, path + quote(nasty, safe="")).get_data(as_text=True)
        assert "<script" not in text, path
    shown = checked(get(client, "/sql?q=" + quote("SELECT '<script>x</script>' AS \"<i>a</i>\"")))
    assert "&lt;script&gt;" in shown
    assert "<i>" not in shown


def test_a_locus_shows_predictions_and_peaks(client: FlaskClient, planted: Planted) -> None:
    text = checked(get(client, "/locus?at=1:1,000-3,000&factor=WEA&biotype=cellA&run=few"))
    assert "WEA on chr1:1000-3000" in text
    assert "few: predicted binding of WEA in cellA" in text
    n_peaks = sum(site + 10 > 1_000 and site < 3_000 for site in planted.sites["chr1"]["WE"])
    assert f"measured peaks of WEA in cellA ({n_peaks})" in text
    assert "<svg" in text
    assert "next peak" in text
    assert "not embedded" not in text
    without = checked(get(client, "/locus?at=chr1:0-1000&factor=WEA&biotype=cellA"))
    assert "predicted binding" not in without
    first = checked(get(client, "/locus?factor=WEA&biotype=cellA&run=few"))
    assert "WEA on chr1:" in first


def test_a_run_that_was_trained_again_is_read_again(client: FlaskClient, planted: Planted) -> None:
    def trained(seed: int) -> str:
        config = TrainConfig(steps=2, options=OPTIONS, bins_per_step=128, pairs_per_step=8, device="cpu", seed=seed)
        train_head(planted.store, planted.selection, config, "again", overwrite=True)
        return checked(get(client, "/locus?at=chr1:0-2000&factor=WEA&biotype=cellA&run=again"))

    try:
        first, other, back = trained(0), trained(1), trained(0)
    finally:
        shutil.rmtree(planted.store.run_dir("again"))
    assert first != other
    assert first == back


def test_scores_have_the_unit_that_their_loss_gave_them(client: FlaskClient, planted: Planted) -> None:
    config = TrainConfig(
        steps=2, options=OPTIONS, bins_per_step=64, pairs_per_step=4, device="cpu", loss=LossConfig(kind="mse")
    )
    try:
        train_head(planted.store, planted.selection, config, "squares")
        units = {
            run: re.findall(r">(share|logit)<", checked(get(client, f"/locus?at=chr1:0-2000&factor=WEA&run={run}")))
            for run in ("squares", "few")
        }
    finally:
        shutil.rmtree(planted.store.run_dir("squares"))
    assert units == {"squares": ["share"], "few": ["logit"]}


def test_a_query_too_long_for_an_address_is_said_in_three_lines(address: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="414") as caught:
        urllib.request.urlopen(f"{address}/sql?q={'x' * 200_000}", timeout=60)
    assert caught.value.headers["Content-Type"].startswith("text/plain")
    said = caught.value.read().decode().splitlines()
    assert said[0] == "Request-URI Too Long"
    assert said[1:] == ["where: the request", "fix: use the page's own forms; a query has 16,000 letters at most"]


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("at=chr9:1-2", 400, "did you mean chr"),
        ("at=nonsense", 400, "is no locus"),
        ("at=chr1:5-5", 400, "does not lie"),
        ("at=chr1:0-13000", 400, "does not lie"),
        ("at=chr1:0-100&factor=WEX", 404, "no factor"),
        ("at=chr1:0-100&biotype=cellC", 404, "no biotype"),
        ("at=chr1:0-100&run=fw", 404, "no run"),
        ("at=chr1:0-100&run=empty", 404, "no run"),
        ("at=chr1:0-100&run=..%2F..%2Fetc", 404, "no run"),
    ],
)
def test_unknown_loci_factors_and_runs_are_said(client: FlaskClient, query: str, status: int, said: str) -> None:
    response = get(client, f"/locus?{query}")
    assert response.status_code == status
    assert said in checked(response)


def test_a_bin_without_an_embedding_is_a_gap(planted: Planted, tmp_path: Path) -> None:
    """Take one shard's receipt away: what it held does not exist, and the page says so."""
    subprocess.run(["cp", "-r", str(planted.store.path), str(tmp_path / "s")], check=True)
    receipts = sorted((tmp_path / "s" / "receipts" / "embeddings").rglob("*.json"))
    receipts = receipts or sorted(p for p in (tmp_path / "s" / "receipts").rglob("*.json") if "embeddings" in str(p))
    receipts[0].unlink()
    client = make_app(Store.open(tmp_path / "s")).test_client()
    text = get(client, "/locus?at=chr1:0-1000&factor=WEA&biotype=cellA&run=few").get_data(as_text=True)
    assert "32 bins are not embedded" in text


def test_runs_show_scores_and_their_report(client: FlaskClient) -> None:
    text = checked(get(client, "/runs"))
    assert "median AUROC" in text
    assert 'href="/runs/few/report"' in text
    assert "no scores yet" in text
    report = get(client, "/runs/few/report")
    assert "script-src 'unsafe-inline'" in report.headers["Content-Security-Policy"]
    assert "connect-src" not in report.headers["Content-Security-Policy"]
    for odd in ("empty", "none", "..", "few%2F.."):
        assert get(client, f"/runs/{odd}/report").status_code == 404


@pytest.mark.parametrize(
    "path", ["/nothing", "/tables/nope", "/tables/peaks'--", "/tables/data.peaks", "/../etc/passwd"]
)
def test_unknown_addresses_are_said(client: FlaskClient, path: str) -> None:
    response = get(client, path)
    assert response.status_code == 404
    assert 'role="alert"' in checked(response)


@pytest.mark.parametrize("number", ["-1", "x", "1e3", "9" * 30, "１"])
def test_odd_page_numbers_are_said(client: FlaskClient, number: str) -> None:
    assert get(client, f"/tables/peaks?page={quote(number)}").status_code == 400


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch", "options"])
def test_only_reading_is_answered(client: FlaskClient, method: str) -> None:
    response = getattr(client, method)("/sql?q=SELECT+1", base_url=BASE)
    assert response.status_code in (200, 405)
    assert "Access-Control-Allow-Origin" not in response.headers
    if method != "options":
        assert response.status_code == 405


@pytest.mark.parametrize(
    ("header", "host", "is_let_in"),
    [
        ("127.0.0.1:8427", "127.0.0.1", True),
        ("localhost", "127.0.0.1", True),
        ("LOCALHOST:99", "127.0.0.1", True),
        ("[::1]:8427", "127.0.0.1", True),
        ("evil.example:8427", "127.0.0.1", False),
        ("localhost.evil.example", "127.0.0.1", False),
        ("127.0.0.1.nip.io", "127.0.0.1", False),
        ("192.168.1.7:8427", "127.0.0.1", False),
        ("", "127.0.0.1", False),
        ("evil.example", "0.0.0.0", False),
        ("192.168.1.7:8427", "0.0.0.0", True),
        ("box.lab:8427", "0.0.0.0", True),
        ("localhost", "0.0.0.0", True),
    ],
)
def test_names_that_others_can_point_here_are_refused(
    planted: Planted, header: str, host: str, is_let_in: bool
) -> None:
    client = make_app(planted.store, host=host, names=["Box.lab"]).test_client()
    response = client.get("/runs", base_url=BASE, headers={"Host": header})
    assert response.status_code == (200 if is_let_in else 403)
    assert ("few" in response.get_data(as_text=True)) == is_let_in


@pytest.mark.parametrize(
    ("path", "site", "mode", "status"),
    [
        ("/sql?q=SELECT+1", "cross-site", "no-cors", 403),
        ("/sql?q=SELECT+1", "same-site", "cors", 403),
        ("/sql?q=SELECT+1", "cross-site", "navigate", 403),
        ("/", "cross-site", "no-cors", 403),
        ("/", "cross-site", "navigate", 200),
        ("/sql?q=SELECT+1", "same-origin", "navigate", 200),
        ("/sql?q=SELECT+1", "none", "navigate", 200),
    ],
)
def test_other_sites_cannot_ask(client: FlaskClient, path: str, site: str, mode: str, status: int) -> None:
    response = get(client, path, **{"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Origin": "http://evil.example"})
    assert response.status_code == status
    assert "Access-Control-Allow-Origin" not in response.headers
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_nothing_in_the_store_changes(client: FlaskClient, planted: Planted) -> None:
    def state() -> dict[str, str]:
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(planted.store.path.rglob("*"))
            if path.is_file()
        }

    before = state()
    for path in ("/", "/tables/peaks", "/sql?q=SELECT+1", "/locus?run=few", "/runs", "/sql?q=DROP+VIEW+peaks"):
        get(client, path)
    assert state() == before


def test_one_page_without_a_server(planted: Planted) -> None:
    assert page(planted.store, "/runs")[0] == 200
    assert page(planted.store, "/tables/x")[0] == 404
    assert cell(float("nan")) == "-"


def test_a_port_that_is_taken_is_said(planted: Planted) -> None:
    server = serve(planted.store, port=0)
    try:
        with pytest.raises(ConfigError, match="cannot listen"):
            serve(planted.store, port=server.port)
    finally:
        server.server_close()


@pytest.fixture(scope="module")
def address(planted: Planted) -> Iterator[str]:
    server = serve(planted.store, port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_command_serves_until_it_is_interrupted(planted: Planted) -> None:
    command = [sys.executable, "-m", "tfbind_store", "browse", str(planted.store.path), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(line.split()[0], timeout=60) as answer:
            assert b"Overview" in answer.read()
        process.send_signal(2)
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


@needs_browser
def test_pages_fit_a_telephone_and_a_desk(address: str, tmp_path: Path) -> None:
    """Nothing sticks out to the right, text is there, forms work, and nobody else is asked for anything."""
    paths = ("/", "/tables/peaks", "/sql?q=SELECT+*+FROM+proteins", "/locus?run=few", "/runs", "/sql?q=x")
    with Browser(tmp_path) as browser:
        for width in (390, 1440):
            browser.resize(width, is_phone=width == 390)
            for path in paths:
                browser.open(address + path)
                assert browser.value("document.documentElement.scrollWidth") <= width, path
                assert browser.value("document.querySelector('h1').textContent"), path
                assert browser.value("document.scripts.length") == 0
        browser.resize(390, is_phone=True)
        browser.open(f"{address}/runs")
        table = "document.querySelector('table.cards')"
        assert browser.value(f"{table}.parentElement.scrollWidth - {table}.parentElement.clientWidth") == 0
        assert browser.value(f"getComputedStyle({table}.querySelector('td.n'), '::before').content") == '"AUROC"'
        browser.open(f"{address}/locus?at=chr1:0-2000&factor=WEA&biotype=cellA&run=few")
        assert browser.value("document.querySelector('figure svg').getBoundingClientRect().height") > 150
        browser.open(f"{address}/sql")
        browser.value("document.querySelector('textarea').value = 'SELECT 40 + 2 AS answer'")
        browser.follow("document.querySelector('form').submit()")
        assert browser.value("document.querySelector('tbody td').textContent") == "42"
        assert all(asked.startswith((address, "about:")) for asked in browser.requests)


@needs_browser
def test_a_page_of_another_name_learns_nothing(address: str, tmp_path: Path) -> None:
    """As after DNS rebinding: the browser takes an outside name for this machine."""
    port = address.rpartition(":")[2]
    with Browser(tmp_path, f"--host-resolver-rules=MAP evil.example 127.0.0.1:{port}") as browser:
        browser.open(f"http://evil.example:{port}/runs")
        text = browser.value("document.body.textContent")
        assert "evil.example" in text
        assert "median" not in text
