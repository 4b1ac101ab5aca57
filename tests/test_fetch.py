"""Downloads against a local server that breaks off, gives wrong bytes, or fails."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from click.testing import CliRunner

from tfbind_store import fetch as fetching
from tfbind_store.cli import main
from tfbind_store.errors import ConfigError, FetchError, NameParseError
from tfbind_store.fetch import Source, clear, fetch, read_records, read_sources

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Says what it was asked; `breaks` is after how many bytes each answer breaks off, None for never."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.last_modified = CONTENT, '"v1"', ""
        self.breaks: list[int | None] = []
        self.statuses: list[int] = []
        self.knows_ranges, self.says_length = True, True
        self.asked: list[tuple[str, str | None]] = []

    def handle_error(self, request, client_address) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append((self.path, asked))
        if server.statuses and (status := server.statuses.pop(0)) != 200:
            self.send_error(status)
            return
        begin = 0
        same = self.headers.get("If-Range") in (server.etag, server.last_modified)
        if asked and server.knows_ranges and same:
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
        body = server.content[begin:]
        self.send_response(206 if begin else 200)
        if server.says_length:
            self.send_header("Content-Length", str(len(body)))
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.last_modified:
            self.send_header("Last-Modified", server.last_modified)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(server.content) - 1}/{len(server.content)}")
        self.end_headers()
        limit = server.breaks.pop(0) if server.breaks else None
        self.wfile.write(body if limit is None else body[:limit])


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
    monkeypatch.setattr(fetching, "TIMEOUT_SECONDS", 5)
    monkeypatch.setattr(fetching.Resumed.__init__, "__kwdefaults__", {"sleep": lambda seconds: None})


def table(server: Server, **changes) -> dict[str, Source]:
    url = f"http://127.0.0.1:{server.server_port}/genome.fa.gz"
    return {"genome": Source(**{"url": url, "file": "genome.fa.gz", "sha256": SHA, **changes})}


def get(server: Server, cache: Path, **changes):
    return fetch("genome", sources=table(server, **changes), cache=cache)


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_a_file_is_fetched_once(server, tmp_path):
    first, second = get(server, tmp_path), get(server, tmp_path)
    assert first == ("genome", tmp_path / "genome.fa.gz", SHA, 300_000, True)
    assert second == first._replace(is_new=False)
    assert (first.path.read_bytes(), len(server.asked)) == (CONTENT, 1)
    assert left(tmp_path) == ["checksums.json", "genome.fa.gz"]


class TestBrokenConnections:
    def test_the_rest_is_asked_for(self, server, tmp_path):
        server.breaks = [100_000, 1, 50_000]
        assert get(server, tmp_path).path.read_bytes() == CONTENT
        assert [asked for _, asked in server.asked] == [None, "bytes=100000-", "bytes=100001-", "bytes=150001-"]
        assert left(tmp_path) == ["checksums.json", "genome.fa.gz"]

    def test_by_date_where_there_is_no_etag(self, server, tmp_path):
        server.etag, server.last_modified, server.breaks = "", "Sat, 01 Jan 2022 00:00:00 GMT", [100_000]
        assert get(server, tmp_path).path.read_bytes() == CONTENT
        assert [asked for _, asked in server.asked] == [None, "bytes=100000-"]

    @pytest.mark.parametrize("etag", ['W/"weak"', ""])
    def test_all_of_it_again_where_nothing_says_that_it_is_the_same(self, server, tmp_path, etag):
        server.etag, server.breaks = etag, [100_000]
        assert get(server, tmp_path).path.read_bytes() == CONTENT
        assert [asked for _, asked in server.asked] == [None, None]

    def test_a_server_that_knows_no_ranges(self, server, tmp_path):
        server.knows_ranges, server.breaks = False, [100_000, 200_000]
        assert get(server, tmp_path).path.read_bytes() == CONTENT

    def test_a_file_that_changed_meanwhile_is_not_patched_together(self, server, tmp_path):
        server.breaks = [100_000] + [0] * 5
        with pytest.raises(FetchError, match="nothing more after 100,000 bytes") as caught:
            get(server, tmp_path)
        assert "goes on from there" in caught.value.fix
        assert left(tmp_path) == ["genome.fa.gz.part", "genome.fa.gz.part.version"]
        server.content, server.etag = CONTENT[::-1], '"v2"'
        new = hashlib.sha256(server.content).hexdigest()
        assert get(server, tmp_path, sha256=new).path.read_bytes() == CONTENT[::-1]

    def test_another_run_goes_on(self, server, tmp_path):
        server.breaks = [100_000] + [0] * 5
        with pytest.raises(FetchError):
            get(server, tmp_path)
        n_asked = len(server.asked)
        assert get(server, tmp_path).sha256 == SHA
        assert server.asked[n_asked:] == [("/genome.fa.gz", "bytes=100000-")]

    def test_a_server_that_is_busy_or_gone(self, server, tmp_path):
        server.statuses = [503, 429, 200]
        assert get(server, tmp_path).sha256 == SHA
        server.statuses = [500] * 5
        with pytest.raises(FetchError, match="status 500"):
            get(server, tmp_path / "other")
        server.statuses = [404]
        with pytest.raises(FetchError, match="answers 404"):
            get(server, tmp_path / "third")
        with pytest.raises(FetchError, match="ConnectionError"):
            get(server, tmp_path / "fourth", url="http://127.0.0.1:1/x")


class TestLies:
    def test_a_part_that_is_longer_than_the_file_is_begun_again(self, server, tmp_path):
        (tmp_path / "genome.fa.gz.part").write_bytes(CONTENT + b"more")
        (tmp_path / "genome.fa.gz.part.version").write_text('"v1"')
        server.statuses = [416]
        assert get(server, tmp_path).path.read_bytes() == CONTENT
        assert [asked for _, asked in server.asked] == ["bytes=300004-", None]

    def test_a_server_without_end_does_not_fill_the_disk(self, server, tmp_path, monkeypatch):
        monkeypatch.setattr(fetching, "LOOK_BYTES", 100_000)
        monkeypatch.setattr(fetching, "RESERVE_BYTES", 1 << 60)
        server.says_length = False
        with pytest.raises(FetchError, match="bytes are left on this disk"):
            get(server, tmp_path)
        assert (tmp_path / "genome.fa.gz.part").stat().st_size < 300_000
        assert not (tmp_path / "genome.fa.gz").exists()


class TestWrongBytes:
    def test_are_refused_and_nothing_is_kept(self, server, tmp_path):
        server.content = CONTENT[:-1] + b"x"
        with pytest.raises(FetchError, match="other bytes than expected"):
            get(server, tmp_path)
        assert left(tmp_path) == []
        server.content = CONTENT
        assert get(server, tmp_path).sha256 == SHA

    def test_a_source_without_sum_is_held_to_the_first(self, server, tmp_path):
        assert get(server, tmp_path, sha256=None).sha256 == SHA
        (tmp_path / "genome.fa.gz").unlink()
        server.content = b"something else"
        with pytest.raises(FetchError, match="other bytes"):
            get(server, tmp_path, sha256=None)

    def test_a_cut_file_without_length_is_refused_by_its_sum(self, server, tmp_path):
        server.says_length, server.breaks = False, [100_000]
        with pytest.raises(FetchError, match="other bytes"):
            get(server, tmp_path)

    def test_a_damaged_file_in_the_cache_is_fetched_again(self, server, tmp_path):
        path = get(server, tmp_path, sha256=None).path
        path.write_bytes(CONTENT[:-1])
        again = get(server, tmp_path, sha256=None)
        assert (again.is_new, again.path.read_bytes()) == (True, CONTENT)


def test_offline_touches_no_network(server, tmp_path):
    with pytest.raises(FetchError, match="not in the cache") as caught:
        fetch("genome", sources=table(server), cache=tmp_path, offline=True)
    assert caught.value.where == str(tmp_path / "genome.fa.gz")
    get(server, tmp_path)
    assert fetch("genome", sources=table(server), cache=tmp_path, offline=True).is_new is False
    assert len(server.asked) == 1


def test_fields_fill_the_address_and_make_other_files(server, tmp_path):
    url = f"http://127.0.0.1:{server.server_port}/?taxid={{taxid}}&q={{genes}}"
    source = {"genes": Source(url=url, file="p.fasta", each={"genes": "gene:{}"})}
    asked = [{"taxid": "9606", "genes": "SOX2, HLA-A"}, {"taxid": "9606", "genes": "x&y=1/../z"}]
    paths = [fetch("genes", sources=source, fields=fields, cache=tmp_path).path for fields in asked]
    assert len(set(paths)) == 2
    assert unquote(server.asked[0][0]) == "/?taxid=9606&q=gene:SOX2 OR gene:HLA-A"
    assert server.asked[1][0] == "/?taxid=9606&q=gene%3Ax%26y%3D1%2F..%2Fz"
    for fields, what in (({"taxid": "1"}, "needs"), ({"taxid": "1", "genes": "a", "z": "1"}, "no field 'z'"),
                         ({"taxid": "1", "genes": " "}, "empty")):  # fmt: skip
        with pytest.raises(ConfigError, match=what):
            fetch("genes", sources=source, fields=fields, cache=tmp_path)


class TestTable:
    def test_the_built_in_one_is_valid(self):
        sources = read_sources()
        assert {"hg38", "remap2022-hg38", "blacklist-hg38", "uniprot", "remap-experiments"} <= set(sources)
        assert all(source.url.startswith("https://") and source.about for source in sources.values())

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ('[a]\nurl = "file:///etc/passwd"\nfile = "x"', ConfigError),
            ('[a]\nurl = "https://{host}/x"\nfile = "x"', ConfigError),
            ('[a]\nurl = "https://h/x"\nfile = "../x"', NameParseError),
            ('[a]\nurl = "https://h/x"\nfile = "x"\nsha256 = "abc"', ConfigError),
            ('[a]\nurl = "https://h/x"\nfile = "x"\nmd5 = "abc"', ConfigError),
            ('[a]\nurl = "https://h/x"', ConfigError),
            ("a = 1", ConfigError),
            ("[a", ConfigError),
        ],
    )
    def test_refusals(self, tmp_path, text, error):
        (tmp_path / "s.toml").write_text(text)
        with pytest.raises(error):
            read_sources(tmp_path / "s.toml")

    def test_an_unknown_name_has_a_near_miss(self):
        with pytest.raises(ConfigError) as caught:
            fetch("hg-38")
        assert "hg38" in caught.value.fix


def test_clearing_removes_downloads_and_nothing_else(server, tmp_path):
    get(server, tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "other.gz.part").write_bytes(b"12345")
    with pytest.raises(ConfigError, match="not in the cache"):
        clear(tmp_path, files=["mine.txt"])
    with pytest.raises(NameParseError):
        clear(tmp_path, files=["../x"])
    assert clear(tmp_path) == 300_005
    assert (left(tmp_path), read_records(tmp_path)) == (["checksums.json", "mine.txt"], {})


def test_stores_of_trainers_are_shown_and_cleared_and_nothing_else(tmp_path):
    place = tmp_path / "trainers"
    for folder, file in (("ab.store", "store.json"), ("trunks/cd", "config.json"), ("mine", "store.json")):
        (place / folder).mkdir(parents=True)
        (place / folder / file).write_text("12345")
    (place / "ab.store" / "link").symlink_to(tmp_path)
    options = ["--cache", str(tmp_path), "--json"]
    shown = json.loads(CliRunner().invoke(main, ["cache", *options]).stdout)
    assert shown["trainers"] == {"ab.store": 5, "trunks/cd": 5}
    assert json.loads(CliRunner().invoke(main, ["cache", "--clear", *options]).stdout)["freed_bytes"] == 0
    cleared = json.loads(CliRunner().invoke(main, ["cache", "--clear-trainers", *options]).stdout)
    assert (cleared["freed_bytes"], cleared["trainers"]) == (10, {})
    assert (place / "mine" / "store.json").exists()


def test_trainers_use_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TFBIND_CACHE", str(tmp_path))
    assert fetching.trainer_folder() == tmp_path / "trainers"


def test_the_commands(server, tmp_path):
    (tmp_path / "s.toml").write_text(
        f'[genome]\nurl = "http://127.0.0.1:{server.server_port}/g"\nfile = "g.fa"\nabout = "ours"\n'
    )
    options = ["--cache", str(tmp_path / "cache"), "--json"]
    done = CliRunner().invoke(main, ["fetch", "genome", "--sources", str(tmp_path / "s.toml"), *options])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["files"][0]["sha256"] == SHA
    shown = json.loads(CliRunner().invoke(main, ["cache", *options]).stdout)
    assert shown["files"]["g.fa"]["size_bytes"] == 300_000
    cleared = json.loads(CliRunner().invoke(main, ["cache", "--clear", *options]).stdout)
    assert (cleared["freed_bytes"], cleared["files"]) == (300_000, {})


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("dmis-lab/biobert-v1.1", "the weights of dmis-lab/biobert-v1.1 are not on this machine"),
        ("PubMedBERT", "the weights of microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract are not on this machine"),
        ("esm2_t6_8M_UR50D", "the weights of esm2_t6_8M_UR50D are not on this machine"),
        ("no model", "'no model' is neither a file nor a published"),
    ],
)
def test_models_are_known_by_hub_id_and_by_their_short_names(monkeypatch, tmp_path, name, what):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    result = CliRunner().invoke(main, ["fetch", "--model", name, "--offline"])
    assert result.exit_code == 1
    assert what in result.stderr


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    for name in ("TFBIND_CACHE", "TF_BIND_CACHE_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert fetching.cache_folder() == tmp_path / "x" / "tfbind_store"
    monkeypatch.setenv("TF_BIND_CACHE_PATH", str(tmp_path / "old"))
    assert fetching.cache_folder() == tmp_path / "old"
    monkeypatch.setenv("TFBIND_CACHE", str(tmp_path / "new"))
    assert fetching.cache_folder() == tmp_path / "new"
