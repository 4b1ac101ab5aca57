"""The command that serves a page: browse."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from tfbind_store.cli.frame import Command, emit, json_option
from tfbind_store.cli.stores import STORE
from tfbind_store.errors import ConfigError, DependencyError


@click.command(
    cls=Command,
    examples=[
        "tfbind browse yeast.store --page '/locus?at=chrI:1000-9000&factor=REB1&run=adapter'",
        "tfbind browse yeast.store --page /runs --json",
    ],
)
@STORE
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; others than this machine's "
              "own let everybody who reaches it read the store.")  # fmt: skip
@click.option(
    "--port", default=8427, show_default=True, type=click.IntRange(0, 65535), help="0 takes any that is free."
)
@click.option("--name", "names", multiple=True, help="Another name under which this machine is reached. Repeatable.")
@click.option("--page", metavar="PATH", help="Print this one page and stop, without serving anything.")
@json_option
def browse(store: Path, host: str, port: int, names: tuple[str, ...], page: str | None, as_json: bool) -> None:
    """Serve a page over a store: tables, an SQL box, loci as tracks with runs' predictions, runs and their scores.

    It listens on this machine only, reads only, and goes on until Ctrl-C. Needs `pip install 'tfbind-store[browse]'`.
    """
    try:
        from tfbind_store.browsing import browse as browsing
    except ImportError as error:
        fix = "pip install 'tfbind-store[browse]'"
        raise DependencyError("tfbind browse needs Flask", where=str(error.name), fix=fix) from error
    from tfbind_store.browsing.page_guard import LOOPBACK
    from tfbind_store.store.folder import Store

    opened = Store.open(store)
    if page is not None:
        status, content = browsing.page(opened, page)
        emit({"page": page, "status": status, "html": content.decode()}, content.decode(), as_json=as_json)
        if status >= 400:
            raise ConfigError(f"the page answered with status {status}", where=page, fix="its text says why")
        return
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = browsing.serve(opened, host=host, port=port, names=names)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{server.port}/"
    emit({"url": url, "store": str(opened.path)}, f"{url} shows {store}; Ctrl-C ends it", as_json=as_json)
    if host not in LOOPBACK:
        click.echo(f"everybody who reaches {host} can read this store", err=True)
    try:
        server.serve_forever()  # until Ctrl-C, which werkzeug takes for the end
    finally:
        server.server_close()
