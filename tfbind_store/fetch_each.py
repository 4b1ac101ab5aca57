"""Download what a list names, one request an item: ReMap's API has its numbers of peaks only there.

Answers are kept beside the file as they come, so that a broken run asks only for the rest. An item that the server does
not have gets null for its details and is counted; a server that fails stops the run, which then goes on from there.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from tqdm import tqdm

from tfbind_store.errors import FetchError

ANSWERS = ".answers.jsonl"
AT_ONCE = 4
TRIES = 5
TIMEOUT_SECONDS = 30
MAX_ANSWER_BYTES = 1 << 24


class Listed(NamedTuple):
    """How a list names its items and where the details of each are."""

    items: str
    """Key of the list."""
    item: str
    """Key of an item's name."""
    url: str
    """Of the details, ``{item}`` for the name."""


_log = logging.getLogger(__name__)


def complete(
    listing: Path, path: Path, listed: Listed, *, sleep: Callable[[float], object] = time.sleep
) -> dict[str, int]:
    """Write `path`: the JSON of `listing` with ``details`` in every item; return how many there are and how many lack.

    Raises
    ------
    FetchError
        If the list is not of the form that `listed` says, or the server fails again and again.
    """
    try:
        value = json.loads(listing.read_text(encoding="utf-8"))
        entries = [(str(entry[listed.item]), entry) for entry in value[listed.items]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        listing.unlink(missing_ok=True)
        what = f"no list of {listed.items} with {listed.item}: {error!r}"
        raise FetchError(what, where=listed.url, fix="its owner may have changed it: --sources") from error
    answers_path = path.with_name(path.name + ANSWERS)
    answers = dict(_answers(answers_path))
    names = list(dict.fromkeys(name for name, _ in entries if name not in answers))
    with open(answers_path, "a", encoding="utf-8") as file, ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            found = pool.map(lambda name: _ask(listed.url.replace("{item}", quote(name, safe="")), sleep), names)
            for name, answer in zip(names, tqdm(found, total=len(names), unit="item", disable=None), strict=True):
                answers[name] = answer
                file.write(json.dumps([name, answer]) + "\n")
                file.flush()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for name, entry in entries:
        entry["details"] = answers[name]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(temporary, path)
    answers_path.unlink()
    n_absent = sum(answers[name] is None for name, _ in entries)
    if n_absent:
        _log.warning("%d of %d %s have no details on the server", n_absent, len(entries), listed.items)
    return {"items": len(entries), "absent": n_absent}


def _answers(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the answers of an earlier run; a last line that was cut off is none, and is cut off the file."""
    if not path.is_file():
        return
    whole = 0
    lines = path.read_bytes().splitlines(keepends=True)
    for line in lines:
        if not line.endswith(b"\n"):
            break
        name, answer = json.loads(line)
        yield str(name), answer
        whole += len(line)
    os.truncate(path, whole)


def _ask(url: str, sleep: Callable[[float], object]) -> Any:
    """Return the JSON at an address, None if the server says that there is none."""
    import requests

    reason = ""
    for attempt in range(TRIES):
        sleep(2.0**attempt if attempt else 0)
        try:
            with requests.get(url, headers={"Accept": "application/json"}, stream=True, timeout=TIMEOUT_SECONDS) as got:
                if got.status_code in (404, 410):
                    return None
                if got.status_code == 200:
                    body = got.raw.read(MAX_ANSWER_BYTES + 1, decode_content=True)
                    if len(body) <= MAX_ANSWER_BYTES:
                        return _object(body)
                    reason = f"an answer of more than {MAX_ANSWER_BYTES:,} bytes"
                else:
                    reason = f"status {got.status_code}"
        except (requests.RequestException, OSError, ValueError) as error:
            reason = f"{type(error).__name__}: {str(error)[:200]}"
    raise FetchError(f"the server gives no details ({reason})", where=url, fix="run the same command again later")


def _object(body: bytes) -> Mapping[str, Any]:
    value = json.loads(body)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value
