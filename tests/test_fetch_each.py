"""Details item by item from a local server that fails, lies, or lacks some."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tfbind_store import fetch_each
from tfbind_store.errors import ConfigError, FetchError
from tfbind_store.fetch import Source, fetch, read_records, read_sources
from tfbind_store.ingest import import_experiments, import_peaks
from tfbind_store.loci import Grid
from tfbind_store.store.folder import Store

NAMES = ["GSE1", "GSE2", "ENCSR/3"]


class Server(ThreadingHTTPServer):
    """Answers like ReMap's API; `answers` overrides what it says about an item: (status, body)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[tuple[int, bytes]]] = {}
        self.listing = json.dumps({"experiments": [{"accession": name, "kind": "ChIP"} for name in NAMES]}).encode()
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        name = self.path.partition("experiment=")[2].partition("&")[0]
        status, body = 200, self.server.listing
        if name:
            details = {"datasets": [{"dataset_name": f"{name}.SOX2.H1", "peaks_NR": 7}]}
            waiting = self.server.answers.get(name, [])
            status, body = waiting.pop(0) if waiting else (200, json.dumps(details).encode())
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch) -> None:
    monkeypatch.setattr(fetch_each.complete, "__kwdefaults__", {"sleep": lambda seconds: None})
    monkeypatch.setattr(fetch_each, "AT_ONCE", 1)


def get(server: Server, cache: Path):
    address = f"http://127.0.0.1:{server.server_port}"
    source = Source(
        url=f"{address}/list/taxid={{taxid}}",
        file="experiments.json",
        details=f"{address}/info/experiment={{item}}&taxid={{taxid}}",
    )
    return fetch("remap", sources={"remap": source}, fields={"taxid": "9606"}, cache=cache)


def test_every_item_gets_its_details_and_the_file_is_what_imports_read(server, tmp_path):
    got = get(server, tmp_path / "cache")
    assert server.asked == [
        "/list/taxid=9606",
        *(f"/info/experiment={name}&taxid=9606" for name in ("GSE1", "GSE2", "ENCSR%2F3")),
    ]
    first = json.loads(got.path.read_text())["experiments"][0]
    assert (first["kind"], first["details"]["datasets"][0]["peaks_NR"]) == ("ChIP", 7)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["checksums.json", got.path.name]
    assert read_records(tmp_path / "cache")[got.path.name]["sha256"] == got.sha256
    (tmp_path / "g.fa").write_text(">chr1\n" + "ACGT" * 20 + "\n")
    store = Store.create(tmp_path / "s", fasta=tmp_path / "g.fa", grid=Grid(window_bp=64, n_bins=4, bin_bp=8))
    (tmp_path / "p.bed").write_text("chr1\t3\t9\tGSE1.SOX2.H1\n")
    import_peaks(store, tmp_path / "p.bed")
    import_experiments(store, got.path)
    with store.reader() as catalog:
        assert catalog.rows("SELECT experiment, peaks_nr FROM experiments") == [("GSE1.SOX2.H1", 7)]


def test_a_server_that_fails_for_a_while(server, tmp_path):
    server.answers = {"GSE1": [(500, b""), (200, b"<html>"), (200, b"[1]"), (429, b"")]}
    assert json.loads(get(server, tmp_path).path.read_text())["experiments"][0]["details"]["datasets"]


def test_a_broken_run_goes_on_where_it_was(server, tmp_path):
    server.answers = {"GSE2": [(500, b"")] * fetch_each.TRIES}
    with pytest.raises(FetchError, match=r"the server gives no details .status 500"):
        get(server, tmp_path)
    kept = next(tmp_path.glob("*.answers.jsonl"))
    kept.write_bytes(kept.read_bytes() + b'["GSE2", {"data')  # killed while it wrote
    server.asked.clear()
    assert [entry["details"] is not None for entry in json.loads(get(server, tmp_path).path.read_text())["experiments"]]
    assert "/info/experiment=GSE1&taxid=9606" not in server.asked
    assert len(server.asked) == 3


def test_an_item_that_the_server_lacks_is_null_and_counted(server, tmp_path, caplog):
    server.answers = {"GSE2": [(404, b"")]}
    details = [entry["details"] for entry in json.loads(get(server, tmp_path).path.read_text())["experiments"]]
    assert [item is None for item in details] == [False, True, False]
    assert "1 of 3 experiments have no details" in caplog.text


@pytest.mark.parametrize(
    "listing", [b"{}", b"[]", b"<html>", b'{"experiments": [{"name": "x"}]}', b'{"experiments": 3}']
)
def test_a_list_that_is_none(server, tmp_path, listing):
    server.listing = listing
    with pytest.raises(FetchError, match="no list of experiments with accession"):
        get(server, tmp_path)
    server.listing = json.dumps({"experiments": []}).encode()
    assert json.loads(get(server, tmp_path).path.read_text()) == {"experiments": []}


def test_an_answer_without_end_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_each, "MAX_ANSWER_BYTES", 10)
    with pytest.raises(FetchError, match="more than 10 bytes"):
        get(server, tmp_path)


@pytest.mark.parametrize(
    ("details", "what"),
    [("http://elsewhere/{item}", "not of the server of url"), ("http://h/{item}/{genes}", "field 'genes'")],
)
def test_a_table_that_would_send_requests_elsewhere(tmp_path, details, what):
    (tmp_path / "s.toml").write_text(f'[a]\nurl = "http://h/x"\nfile = "x"\ndetails = "{details}"\n')
    with pytest.raises(ConfigError, match=what):
        read_sources(tmp_path / "s.toml")
