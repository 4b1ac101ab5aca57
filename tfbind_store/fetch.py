"""Download files by name into a cache: resumed where a connection broke, checked against a sum, never half there.

What a name means stands in a table (TOML) that a user may replace; the one in the package is `sources.toml`. A source
without a checksum is trusted the first time and held to the sum recorded then. pooch moves a file into its place only
after the check; a broken download stays beside it as ``.part`` and the next try goes on from there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from tfbind_store import fetch_each
from tfbind_store.config import from_mapping
from tfbind_store.errors import ConfigError, FetchError
from tfbind_store.names import near_miss, path_safe_name

CACHE_VARIABLES = ("TFBIND_CACHE", "TF_BIND_CACHE_PATH")
RECORDS = "checksums.json"
PART = ".part"
TRIES = 5
TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 20
LOOK_BYTES, RESERVE_BYTES = 1 << 26, 1 << 28
"""How often free space is looked at, and how much must stay."""
_FIELD = re.compile(r"\{(\w+)\}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One entry of the table."""

    url: str
    """``https`` or ``http``; ``{field}`` is filled from `--set field=value`."""
    file: str
    """Name in the cache."""
    sha256: str | None = None
    """Of the file; None: recorded at the first download and checked from then on."""
    about: str = ""
    """What it is, and under which licence or citation."""
    each: Mapping[str, str] = field(default_factory=dict)
    """How each item of a comma-separated field is written, ``{}`` being the item; items are joined by OR."""
    details: str = ""
    """Address of the details of each item of a list, ``{item}`` being its name: they are fetched one by one."""
    items: str = "experiments"
    """Key of that list in the JSON of `url`."""
    item: str = "accession"
    """Key of an item's name."""


class Fetched(NamedTuple):
    """A file in the cache."""

    name: str
    path: Path
    sha256: str
    size_bytes: int
    is_new: bool
    """Whether it was downloaded now."""


def cache_folder() -> Path:
    """Return where downloads lie: $TFBIND_CACHE, else $TF_BIND_CACHE_PATH, else the user's cache folder."""
    for variable in CACHE_VARIABLES:
        if named := os.environ.get(variable):
            return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tfbind_store"


def trainer_folder() -> Path:
    """Return where `Trainer` keeps the stores that it makes, unless it is told otherwise."""
    return cache_folder() / "trainers"


def trainer_stores(folder: Path) -> dict[str, int]:
    """Return the stores and trunks that trainers left in a folder, with their sizes in bytes; nothing else counts."""
    stores = [path.parent for path in folder.glob("*.store/store.json")]
    trunks = [path.parent for path in folder.glob("trunks/*/config.json")]
    return {str(path.relative_to(folder)): _folder_bytes(path) for path in sorted([*stores, *trunks])}


def clear_trainers(folder: Path) -> int:
    """Remove what `trainer_stores` lists, runs too; return the bytes."""
    freed = 0
    for name, size in trainer_stores(folder).items():
        shutil.rmtree(folder / name)
        freed += size
    return freed


def _folder_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def read_sources(path: Path | None = None) -> dict[str, Source]:
    """Read a table of sources; None is the package's own.

    Raises
    ------
    ConfigError
        If the table is not valid, or an entry has an unknown key, an odd address, file name or sum.
    """
    path = path or Path(__file__).with_name("sources.toml")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a table of sources: {error}", where=str(path)) from error
    return {name: _checked(name, value, path) for name, value in values.items()}


def _checked(name: str, value: object, path: Path) -> Source:
    where = f"{path}: {name}"
    if not isinstance(value, Mapping) or not {"url", "file"} <= set(value):
        raise ConfigError("a source needs url and file", where=where)
    source = from_mapping(Source, value, where=where)
    path_safe_name(source.file, what="file")
    parts = urlsplit(source.url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "{" in parts.netloc:
        raise ConfigError(f"{source.url!r} is no http address", where=where)
    if source.details and urlsplit(source.details)[:2] != parts[:2]:
        fix = "write the same server as in url"
        raise ConfigError(f"{source.details!r} is not of the server of url", where=where, fix=fix)
    if odd := set(_FIELD.findall(source.details)) - set(_FIELD.findall(source.url)) - {"item"}:
        raise ConfigError(f"details has a field {min(odd)!r} that url has not", where=where)
    if source.sha256 is not None and not _SHA256.fullmatch(source.sha256):
        raise ConfigError(f"{source.sha256!r} is no sha256", where=where, fix="64 hex digits, or leave it out")
    return source


def fetch(
    name: str,
    *,
    sources: Mapping[str, Source] | None = None,
    fields: Mapping[str, str] | None = None,
    cache: Path | None = None,
    offline: bool = False,
) -> Fetched:
    """Return the file called `name`, downloaded if it is not in the cache.

    Parameters
    ----------
    name
        In the table.
    sources
        The table; default the package's.
    fields
        Values of the ``{fields}`` of its address.
    cache
        Folder; default `cache_folder`.
    offline
        Touch no network.

    Raises
    ------
    ConfigError
        On an unknown name or field.
    FetchError
        If it is not in the cache and offline, the server fails again and again, or the bytes are not those expected.
    """
    table = read_sources() if sources is None else sources
    if name not in table:
        close = near_miss(name, list(table))
        fix = f"did you mean {close}?" if close else "tfbind fetch --list"
        raise ConfigError(f"no source is called {name!r}", where="sources", fix=fix)
    source, folder = table[name], cache or cache_folder()
    values = dict(fields or {})
    url, file = _address(name, source, values)
    path = folder / file
    records = read_records(folder)
    expected = source.sha256 or records.get(file, {}).get("sha256")
    if path.is_file():
        found = sha256_of(path)
        if found == (expected or found):
            return Fetched(name, path, found, path.stat().st_size, False)
        _log.warning("%s in the cache is damaged: it is fetched again", path)
    if offline:
        raise FetchError(f"{name} is not in the cache", where=str(path), fix=f"without --offline, or put {url} there")
    if source.details:
        details = _filled(source.details, {**_written(source, values), "item": "{item}"})
        listing = path.with_name(path.name + ".list")
        _download(url, listing, None)
        fetch_each.complete(listing, path, fetch_each.Listed(source.items, source.item, details))
        listing.unlink(missing_ok=True)
        found = sha256_of(path)
    else:
        found = _download(url, path, expected)
    records[file] = {"sha256": found, "url": url, "size_bytes": path.stat().st_size}
    _write_records(folder, records)
    return Fetched(name, path, found, path.stat().st_size, True)


def _address(name: str, source: Source, fields: dict[str, str]) -> tuple[str, str]:
    """Return a source's address and file name with its fields filled in; other fields give other files."""
    wanted = list(dict.fromkeys(_FIELD.findall(source.url)))
    absent, odd = sorted(set(wanted) - set(fields)), sorted(set(fields) - set(wanted))
    if absent or odd:
        what = f"{name} needs {absent}" if absent else f"{name} has no field {odd[0]!r}"
        raise ConfigError(what, where="sources", fix=" ".join(f"--set {w}=…" for w in wanted) or "no --set")
    if not wanted:
        return source.url, source.file
    url = _filled(source.url, _written(source, fields))
    stem, dot, suffix = source.file.partition(".")
    return url, f"{stem}-{hashlib.sha256(url.encode()).hexdigest()[:10]}{dot}{suffix}"


def _written(source: Source, fields: Mapping[str, str]) -> dict[str, str]:
    """Return the fields as they stand in an address."""
    written = {}
    for key, value in fields.items():
        items = [item.strip() for item in value.split(",") if item.strip()]
        if not items:
            raise ConfigError(f"field {key} is empty", where="sources")
        pattern = source.each.get(key, "{}")
        written[key] = quote(" OR ".join(pattern.replace("{}", item) for item in items), safe="")
    return written


def _filled(url: str, written: Mapping[str, str]) -> str:
    return _FIELD.sub(lambda match: written[match[1]], url)


def _download(url: str, path: Path, expected: str | None) -> str:
    """Fetch into `path` through pooch and return the sum."""
    import pooch

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with _quiet_pooch():
            pooch.retrieve(
                url, f"sha256:{expected}" if expected else None, path.name, path.parent, downloader=Resumed(path)
            )
    except ValueError as error:  # pooch's word for another sum
        found = re.search(r"[0-9a-f]{64}", str(error))
        raise FetchError(
            f"the server gave other bytes than expected ({(found[0] if found else 'unknown')[:12]}…)",
            where=url,
            fix=f"nothing was kept; if the file has a new version, correct its sha256 (now {str(expected)[:12]}…)",
        ) from error
    return sha256_of(path)


class Resumed:
    """A downloader for pooch that goes on where an earlier one broke off.

    Parameters
    ----------
    path
        Where the file will lie; the part lies beside it.
    """

    def __init__(self, path: Path, *, sleep: Callable[[float], object] = time.sleep) -> None:
        self.part = path.with_name(path.name + PART)
        self.mark = path.with_name(path.name + PART + ".version")
        self._sleep = sleep

    def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> None:
        """Fetch `url` into `output_file`, as pooch wants it.

        Raises
        ------
        FetchError
            If the server refuses, or breaks off `TRIES` times without giving anything new.
        """
        import requests

        fruitless, reason = 0, ""
        while fruitless < TRIES:
            before = self._size()
            try:
                if self._go_on(url):
                    self.mark.unlink(missing_ok=True)
                    os.replace(self.part, output_file)
                    return
                reason = "the connection broke off"
            except requests.RequestException as error:
                reason = f"{type(error).__name__}: {error}"
            fruitless = 0 if self._size() > before else fruitless + 1
            _log.info("%s after %d bytes: %s", url, self._size(), reason)
            self._sleep(min(2.0**fruitless, 30) if fruitless else 0)
        raise FetchError(
            f"the server gave nothing more after {self._size():,} bytes ({reason[:200]})",
            where=url,
            fix="run the same command again later: it goes on from there",
        )

    def _go_on(self, url: str) -> bool:
        """Ask for the rest and append it; return whether the file is whole."""
        import requests

        begin = self._size()
        version = self.mark.read_text(encoding="utf-8") if begin and self.mark.is_file() else ""
        headers = {"Accept-Encoding": "identity"}
        if begin and version:
            headers |= {"Range": f"bytes={begin}-", "If-Range": version}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            if response.status_code in (408, 425, 429) or response.status_code >= 500:
                raise requests.HTTPError(f"status {response.status_code}")
            if response.status_code == 416:  # there is nothing behind what we have: it is whole, or not of this file
                self.part.unlink(missing_ok=True)
                return False
            if response.status_code not in (200, 206):
                self.part.unlink(missing_ok=True)
                raise FetchError(f"the server answers {response.status_code} {response.reason}", where=url)
            goes_on = response.status_code == 206 and _range_start(response.headers) == begin
            total = _total(response.headers, begin if goes_on else 0)
            self._mark(response.headers)
            self._require_space(total)
            whole = _append(response, self.part, "ab" if goes_on else "wb")
        return whole and (total is None or self._size() == total)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _mark(self, headers: Mapping[str, str]) -> None:
        """Remember which version of the file the part is of; a weak mark cannot say so."""
        etag = headers.get("ETag", "")
        version = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
        if version:
            self.mark.write_text(version, encoding="utf-8")
        else:
            self.mark.unlink(missing_ok=True)

    def _require_space(self, total: int | None) -> None:
        free = shutil.disk_usage(self.part.parent).free
        need = (total or 0) - self._size()
        if need > free:
            raise FetchError(f"need {need:,} bytes, have {free:,}", where=str(self.part.parent), fix="free some space")


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what is recorded about each file of a cache: sum, address, size."""
    try:
        records = json.loads((folder / RECORDS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FetchError(f"not valid JSON: {error}", where=str(folder / RECORDS), fix="remove it") from error
    return dict(records)


def clear(folder: Path, *, files: list[str] | None = None) -> int:
    """Remove downloads and their unfinished parts, and nothing else that may lie in the folder; return the bytes."""
    records = read_records(folder)
    freed = 0
    for file in list(records) if files is None else files:
        path_safe_name(file, what="file")
        if file not in records:
            raise ConfigError(f"{file!r} is not in the cache", where=str(folder), fix="tfbind cache")
        for path in (folder / file, folder / (file + PART), folder / f"{file}{PART}.version"):
            freed += path.stat().st_size if path.is_file() else 0
            path.unlink(missing_ok=True)
        del records[file]
    if files is None:
        for left_over in (f"*{PART}", f"*{fetch_each.ANSWERS}"):
            for path in folder.glob(left_over):
                freed += path.stat().st_size
                path.unlink()
    if records or (folder / RECORDS).exists():
        _write_records(folder, records)
    return freed


def _write_records(folder: Path, records: Mapping[str, Any]) -> None:
    temporary = folder / f".{RECORDS}.{os.getpid()}"
    temporary.write_text(json.dumps(dict(sorted(records.items())), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / RECORDS)


def _range_start(headers: Mapping[str, str]) -> int | None:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _total(headers: Mapping[str, str], begin: int) -> int | None:
    """Return how long the whole file is, as the server says."""
    length = headers.get("Content-Length", "")
    return begin + int(length) if length.isdigit() else None


def _append(response: Any, path: Path, mode: str) -> bool:
    """Write what a response gives, to the last byte before a break; return whether it came to its end."""
    from urllib3.exceptions import HTTPError

    with open(path, mode) as file:
        try:
            n_bytes = 0
            while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
                file.write(chunk)
                n_bytes += len(chunk)
                if n_bytes // LOOK_BYTES != (n_bytes - len(chunk)) // LOOK_BYTES:
                    _require_reserve(path)
        except (HTTPError, OSError) as error:
            if isinstance(error, FetchError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
                raise
            return False
    return True


def _require_reserve(path: Path) -> None:
    """Stop a server that goes on and on before it fills the disk."""
    free = shutil.disk_usage(path.parent).free
    if free < RESERVE_BYTES:
        what = f"{free:,} bytes are left on this disk"
        raise FetchError(what, where=str(path), fix="free some space, or remove the part if the server gives no end")


@contextlib.contextmanager
def _quiet_pooch() -> Any:
    """Keep pooch's own log, which speaks of its registry, out of ours."""
    import pooch

    logger = pooch.get_logger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
