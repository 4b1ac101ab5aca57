"""A local page over a store: tables and counts, SQL, loci as tracks, runs and their scores.

It reads the newest snapshot of the catalog and published embeddings, and writes nothing. Queries go through the same
process of their own as ``Store.sql``. The page loads nothing from anywhere, runs no script, and answers only requests
that name this machine as their host: a page of another site cannot have a browser read the store for it, neither by a
name that it points here nor by a link in its text.
"""

from __future__ import annotations

import io
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import flask
import jinja2
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from tfbind_store.browsing.locus_view import LocusViewer, Pair
from tfbind_store.browsing.page_guard import require_own_host, require_own_site
from tfbind_store.errors import ConfigError, RequestRefused, SqlError, StoreBusy, StoreMissing, TfbindError
from tfbind_store.loci import Locus
from tfbind_store.metrics.summary import headlines, spaced, verdicts
from tfbind_store.names import near_miss
from tfbind_store.reporting.report import REPORT_NAME
from tfbind_store.reporting.runs import read_run
from tfbind_store.store.answers import WRITERS, Answer
from tfbind_store.store.folder import Store

PAGES = (("/", "overview"), ("/sql", "SQL"), ("/locus", "locus"), ("/runs", "runs"))
PAGE_ROWS, SQL_ROWS, CSV_ROWS = 100, 1000, 100_000
SQL_SECONDS, SQL_MEMORY, SQL_AT_ONCE = 10, "1GB", 2
QUERY_LETTERS = 16_000
"""Of SQL in an address; servers read 64 kB of one, and a letter may take three bytes there."""
FIRST_FLANK_BP = 2_000
CELL_LETTERS = 160
MAX_NUMBER = 10**9
POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
REPORT_POLICY = f"{POLICY}; script-src 'unsafe-inline'; img-src data:"
"""A report sorts its tables by a script of its own; it may still load and send nothing."""
_NUMBERS = ("INT", "DOUBLE", "FLOAT", "DECIMAL", "REAL")
_log = logging.getLogger(__name__)


class View(NamedTuple):
    """One of the catalog's views."""

    name: str
    holds: str
    columns: tuple[tuple[str, str, str], ...]
    """Name, type, meaning."""
    n_rows: int


class Catalogue:
    """The catalog's views with their row counts, read again only when there is a newer snapshot."""

    def __init__(self, store: Store) -> None:
        self.store, self._lock = store, threading.Lock()
        self._known: tuple[Path, list[View]] | None = None

    def views(self) -> list[View]:
        """Return every view, in the order of the schema."""
        with self._lock, self.store.reader() as catalog:
            if self._known is None or self._known[0] != catalog.path:
                columns: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
                for view, holds, *column in catalog.described():
                    columns.setdefault((view, holds), []).append((column[0], column[1], column[2]))
                found = [
                    View(name, holds, tuple(own), int(catalog.rows(f'SELECT count(*) FROM "{name}"')[0][0]))
                    for (name, holds), own in columns.items()
                ]
                self._known = catalog.path, found
            return self._known[1]

    def view(self, name: str) -> View:
        """Return one view, or say which there are."""
        views = {view.name: view for view in self.views()}
        if name not in views:
            close = near_miss(name, list(views))
            raise StoreMissing(
                f"no table {name[:80]!r}", where="tables", fix=f"did you mean {close}?" if close else ", ".join(views)
            )
        return views[name]


class _Pages:
    """What each address answers."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.catalogue, self.viewer = Catalogue(store), LocusViewer(store)
        self._queries = threading.BoundedSemaphore(SQL_AT_ONCE)

    def home(self) -> str:
        lengths = self.store.genome.lengths_bp
        arrays = [
            (
                array.name,
                " x ".join(f"{size:,}" for size in array.shape),
                array.spec.dtype,
                array.spec.embedder,
                array.completeness.n_ok + array.completeness.n_all_n,
                array.size_bytes / 2**20,
            )
            for array in self.store.arrays()
        ]
        return self._page(
            "home", "overview", "Overview", views=self.catalogue.views(), arrays=arrays, n_chroms=len(lengths),
            length_bp=sum(lengths.values()), selections=self.store.selections(),
            unreadable={name: error.what for name, error in self.store.unreadable_arrays().items()},
        )  # fmt: skip

    def table(self, name: str) -> str:
        view, page = self.catalogue.view(name), _number("page", 0)
        first = page * PAGE_ROWS
        answer = self._ask(f'SELECT * FROM "{view.name}" LIMIT {PAGE_ROWS} OFFSET {first}', PAGE_ROWS)
        return self._page(
            "table", "overview", view.name, holds=view.holds, n_rows=view.n_rows, page=page, first=first,
            rows=answer.rows, columns=_columns(answer), meanings=view.columns,
            query=f"SELECT * FROM {view.name} LIMIT 100",
        )  # fmt: skip

    def sql(self) -> tuple[str, int]:
        query = flask.request.args.get("q", "")
        views = [(view.name, [column[0] for column in view.columns]) for view in self.catalogue.views()]
        known: dict[str, Any] = {"query": query, "views": views, "seconds": SQL_SECONDS, "letters": QUERY_LETTERS}
        if not query.strip():
            example = "SELECT factor, count(*) AS n FROM peaks GROUP BY factor ORDER BY n DESC LIMIT 20"
            return self._page("sql", "SQL", "SQL", **{**known, "query": query or example}), 200
        try:
            answer = self._ask(query, SQL_ROWS)
        except (SqlError, StoreBusy) as error:
            return self._page("sql", "SQL", "SQL", error=error, **known), _status(error)
        found = {"rows": answer.rows, "columns": _columns(answer), "is_cut": answer.is_cut, "csv_rows": CSV_ROWS}
        return self._page("sql", "SQL", "SQL", **known, **found), 200

    def csv(self) -> flask.Response:
        answer = self._ask(flask.request.args.get("q", ""), CSV_ROWS)
        text = io.StringIO()
        WRITERS["csv"](text, answer.columns, [answer.rows])
        response = flask.Response(text.getvalue(), mimetype="text/csv")
        response.headers["Content-Disposition"] = "attachment; filename=answer.csv"
        return response

    def locus(self) -> tuple[str, int]:
        given = flask.request.args
        with self.store.reader() as catalog:
            factors = [str(row[0]) for row in catalog.rows("SELECT factor FROM factors WHERE has_protein ORDER BY 1")]
            biotypes = [str(row[0]) for row in catalog.rows("SELECT biotype FROM biotypes ORDER BY 1")]
        runs = self._runs_with_heads()
        pair = Pair(given.get("factor") or next(iter(factors), ""), given.get("biotype") or next(iter(biotypes), ""))
        chosen = given.getlist("run") or ([] if given.get("at") else runs[:1])
        form: dict[str, Any] = {
            "factors": factors, "biotypes": biotypes, "runs": runs, "factor": pair.factor, "biotype": pair.biotype,
            "chosen": chosen, "at": given.get("at", ""), "view": None,
        }  # fmt: skip
        try:
            for what, name, known in (("factor", pair.factor, factors), ("biotype", pair.biotype, biotypes)):
                _require_known(what, name, known)
            for name in chosen:
                _require_known("run", name, runs)
            locus = self._locus_of(form["at"], pair)
            view = self.viewer.view(locus, pair, chosen)
        except TfbindError as error:
            return self._page("locus", "locus", "Locus", error=error, **form), _status(error)
        form |= {"at": str(locus), "view": view, "moves": self._moves(locus, pair, chosen)}
        return self._page("locus", "locus", f"{pair.factor} on {locus}", **form), 200

    def runs(self) -> str:
        return self._page("runs", "runs", "Runs", runs=[self._described_run(name) for name in self.store.runs()])

    def report(self, name: str) -> flask.Response:
        path = self.store.run_dir(name) / REPORT_NAME if name in self.store.runs() else None
        if path is None or not path.is_file():
            raise StoreMissing(f"no report of {name[:80]!r}", where="runs", fix="make one: tfbind report RUN")
        response = flask.Response(path.read_bytes(), mimetype="text/html")
        response.headers["Content-Security-Policy"] = REPORT_POLICY
        return response

    def failed(self, error: TfbindError) -> tuple[str, int]:
        return self._page("base", "", "That did not work", error=error), _status(error)

    def _page(self, template: str, here: str, heading: str, **values: Any) -> str:
        known = {"store": self.store, "store_name": self.store.path.name, "pages": PAGES, "error": None}
        return flask.render_template(f"browse/{template}.html", here=here, heading=heading, **{**known, **values})

    def _ask(self, query: str, max_rows: int) -> Answer:
        with self._turn():
            return self.store.sql(query, seconds=SQL_SECONDS, memory=SQL_MEMORY, max_rows=max_rows)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._queries.acquire(timeout=SQL_SECONDS):
            raise StoreBusy(f"{SQL_AT_ONCE} other queries are running", where="/sql", fix="ask again in a moment")
        try:
            yield
        finally:
            self._queries.release()

    def _runs_with_heads(self) -> list[str]:
        return [name for name in self.store.runs() if (self.store.run_dir(name) / "head.safetensors").is_file()]

    def _locus_of(self, text: str, pair: Pair) -> Locus:
        """Return the locus asked for; without one, that of the pair's first peak."""
        if text.strip():
            return self.store.tiling.locus_of(text, self.store.meta.aliases)
        return self._peak_beside(None, pair) or Locus(
            self.store.tiling.chroms[0], 0, min(2 * FIRST_FLANK_BP, self.store.tiling.lengths_bp[0])
        )

    def _peak_beside(self, locus: Locus | None, pair: Pair) -> Locus | None:
        """Return a locus of the same width about the next peak of the pair; its first peak if `locus` is None."""
        behind = "" if locus is None else "AND chrom = $chrom AND start >= $end"
        values = {} if locus is None else {"chrom": locus.chrom, "end": locus.end}
        sql = f"""SELECT chrom, (start + "end") // 2 FROM peaks WHERE factor = $factor AND biotype = $biotype {behind}
            ORDER BY chrom, start LIMIT 1"""
        with self.store.reader() as catalog:
            found = catalog.one(sql, {**pair._asdict(), **values})
        if found is None:
            return None
        width = 2 * FIRST_FLANK_BP if locus is None else locus.end - locus.start
        return self._within(str(found[0]), int(found[1]) - width // 2, width)

    def _within(self, chrom: str, start: int, width: int) -> Locus:
        length = self.store.tiling.lengths_bp[self.store.tiling.chrom_index[chrom]]
        width = min(width, length)
        start = min(max(start, 0), length - width)
        return Locus(chrom, start, start + width)

    def _moves(self, locus: Locus, pair: Pair, runs: Sequence[str]) -> list[tuple[str, str]]:
        width, middle = locus.end - locus.start, (locus.start + locus.end) // 2
        half, double = max(width // 2, 1), 2 * width
        places: list[tuple[str, Locus | None]] = [
            ("left", self._within(locus.chrom, locus.start - half, width)),
            ("right", self._within(locus.chrom, locus.start + half, width)),
            ("closer", self._within(locus.chrom, middle - half // 2, half)),
            ("wider", self._within(locus.chrom, middle - width, double)),
            ("next peak", self._peak_beside(locus, pair)),
        ]
        return [
            (name, flask.url_for("locus", at=str(place), **pair._asdict(), run=list(runs)))
            for name, place in places
            if place is not None and place != locus
        ]

    def _described_run(self, name: str) -> dict[str, Any]:
        folder = self.store.run_dir(name)
        described: dict[str, Any] = {
            "name": name, "has_report": (folder / REPORT_NAME).is_file(), "problem": "", "verdicts": [],
            "headlines": [], "cases": [],
        }  # fmt: skip
        try:
            cases = read_run(folder).cases
        except TfbindError as error:
            return {**described, "problem": f"{error.what}; {error.fix}"}
        return {**described, "verdicts": verdicts(cases), "headlines": headlines(cases), "cases": cases}


def make_app(store: Store, *, host: str = "127.0.0.1", names: Sequence[str] = ()) -> flask.Flask:
    """Return the page as a WSGI application.

    Parameters
    ----------
    host
        Address that it will listen at: decides which hosts a request may name.
    names
        Other names under which this machine is reached.
    """
    app, pages = flask.Flask("tfbind_store", template_folder="templates", static_folder=None), _Pages(store)
    app.jinja_options = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    app.jinja_env.filters.update(cell=cell, spaced=spaced)
    addresses: dict[str, Callable[..., Any]] = {
        "/": pages.home, "/tables/<name>": pages.table, "/sql": pages.sql, "/sql.csv": pages.csv,
        "/locus": pages.locus, "/runs": pages.runs, "/runs/<name>/report": pages.report,
    }  # fmt: skip
    for address, answer in addresses.items():
        app.add_url_rule(address, endpoint=answer.__name__, view_func=answer, methods=["GET"])

    @app.before_request
    def refuse_others() -> None:
        headers = flask.request.headers
        require_own_host(headers.get("Host", ""), host=host, names=names)
        require_own_site(headers.get("Sec-Fetch-Site"), headers.get("Sec-Fetch-Mode"), path=flask.request.path)

    @app.after_request
    def close_up(response: flask.Response) -> flask.Response:
        response.headers.setdefault("Content-Security-Policy", POLICY)
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.errorhandler(TfbindError)
    def say_what(error: TfbindError) -> tuple[str, int]:
        return pages.failed(error)

    @app.errorhandler(HTTPException)
    def say_which(error: HTTPException) -> tuple[str, int]:
        fix = "start from the overview" if error.code == 404 else "this page can only be read"
        path = flask.request.path[:80]
        described = TfbindError(f"{error.name}: {flask.request.method} {path}", where="tfbind browse", fix=fix)
        return pages.failed(described)[0], error.code or 500

    @app.errorhandler(Exception)
    def say_sorry(error: Exception) -> tuple[str, int]:
        _log.exception("%s %s", flask.request.method, flask.request.path)
        what, fix = f"unexpected {type(error).__name__}", "this is a fault of tfbind_store: its log has the traceback"
        return pages.failed(TfbindError(what, where=flask.request.path[:80], fix=fix))[0], 500

    return app


class _Requests(WSGIRequestHandler):
    """Says what is wrong with a request that is none, or too long, in the three lines of any error."""

    error_content_type = "text/plain;charset=utf-8"
    error_message_format = "%(message)s\nwhere: the request\nfix: use the page's own forms; " + (
        f"a query has {QUERY_LETTERS:,} letters at most\n"
    )


def serve(store: Store, *, host: str = "127.0.0.1", port: int = 8427, names: Sequence[str] = ()) -> BaseWSGIServer:
    """Return a server that listens; ``serve_forever`` answers until it is stopped.

    Raises
    ------
    ConfigError
        If the address or the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as listening:
            app = make_app(store, host=host, names=names)
            return make_server(host, port, app, threaded=True, fd=listening.fileno(), request_handler=_Requests)
    except (OSError, OverflowError) as error:
        fix = "choose another --port, 0 takes any that is free"
        raise ConfigError(f"cannot listen at {host} port {port}: {error}", where="--port", fix=fix) from error


def page(store: Store, path: str) -> tuple[int, bytes]:
    """Return status and content of one page, without a server."""
    response = make_app(store).test_client().get(path, base_url="http://127.0.0.1")
    return response.status_code, response.get_data()


def cell(value: Any) -> str:
    """Return a value as a table shows it.

    Examples
    --------
    >>> cell(None), cell(0.123456789), cell(["a", "b"]), cell(12)
    ('-', '0.1235', 'a, b', '12')
    """
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= CELL_LETTERS else f"{text[:CELL_LETTERS]}…"


def _columns(answer: Answer) -> list[tuple[str, bool]]:
    kinds = zip(answer.columns, answer.types, strict=True)
    return [(name, any(word in kind for word in _NUMBERS) and "[" not in kind) for name, kind in kinds]


def _number(name: str, default: int) -> int:
    text = flask.request.args.get(name, str(default))
    if not (text.isascii() and text.isdigit() and int(text[:12]) <= MAX_NUMBER):
        raise ConfigError(f"{name} is {text[:40]!r}", where=name, fix="give a number from 0 on")
    return int(text)


def _require_known(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        close = near_miss(name, list(known))
        fix = f"did you mean {close}?" if close else f"known: {', '.join(known[:8]) or 'none'}"
        raise StoreMissing(f"no {what} {name[:80]!r} in this store", where=what, fix=fix)


def _status(error: TfbindError) -> int:
    if isinstance(error, RequestRefused):
        return 403
    if isinstance(error, StoreBusy):
        return 503
    return 404 if isinstance(error, StoreMissing) else 400
