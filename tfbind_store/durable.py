"""Publish files so that they are either whole under their final name or not there at all.

The order is fixed: a temporary file in the same directory (O_EXCL), write, fsync, rename, fsync of the directory. Every
call to the operating system goes through `FileSystem`, so that tests can record the order and make any call fail. What
the bytes mean is said elsewhere (``shards``, ``receipts``, ``store``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from tfbind_store.errors import NoSpace, StoreBusy, StoreError, StoreReadOnly

TEMPORARY_SUFFIX = ".tmp"
_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{16}" + re.escape(TEMPORARY_SUFFIX) + "$")
MAX_JSON_BYTES = 16 * 1024 * 1024
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_log = logging.getLogger(__name__)


class FileSystem:
    """The calls to the operating system that a commit makes; tests replace them."""

    def open_exclusive(self, path: Path) -> int:
        """Create `path`, which must not exist, and return its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of `data` and return how many bytes."""
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        """Bring a file's bytes to the disk."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give `source` the name `target`, replacing what had it."""
        os.rename(source, target)

    def fsync_directory(self, path: Path) -> None:
        """Bring a directory's names to the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        os.unlink(path)


REAL = FileSystem()
Bytes = bytes | bytearray | memoryview


@contextlib.contextmanager
def typed_errors(path: Path, *, need_bytes: int = 0) -> Iterator[None]:
    """Turn an OSError about `path` into the error that says what to do about it."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise _typed(error, path, need_bytes) from error


def _typed(error: OSError, path: Path, need_bytes: int) -> StoreError:
    if error.errno in _NO_SPACE:
        free = free_bytes(path)
        need = f"need {need_bytes:,} bytes, have {free:,}" if need_bytes else f"{free:,} bytes are free"
        return NoSpace(
            f"the disk is full: {need}", where=str(path), fix="free some space, then run the same command again"
        )
    if error.errno == errno.EFBIG:
        what = f"a file of {need_bytes:,} bytes is larger than this disk, or a limit on the process, allows"
        return NoSpace(what, where=str(path), fix="choose another disk, or raise the limit: ulimit -f unlimited")
    if error.errno in _READ_ONLY:
        fix = "make the store writable for you, or copy it to a place that is"
        return StoreReadOnly(f"cannot write: {error.strerror}", where=str(path), fix=fix)
    fix = "check the disk, then run the same command again"
    return StoreError(f"writing failed: {error.strerror or error}", where=str(path), fix=fix)


@contextlib.contextmanager
def sole_owner(folder: Path, *, doing: str) -> Iterator[bool]:
    """Keep every other process that asks the same out of `folder`; tell whether that holds: some disks know no locks.

    Raises
    ------
    StoreBusy
        If another process is in there.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreBusy(f"another process is {doing}", where=str(folder)) from error
        except OSError as error:
            _log.warning("%s: its disk knows no locks: %s", folder, error)
            is_alone = False
        else:
            is_alone = True
        yield is_alone
    finally:
        os.close(descriptor)


def free_bytes(path: Path) -> int:
    """Return how many bytes may still be written where `path` is or will be."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            found = os.statvfs(place)
            return found.f_bavail * found.f_frsize
    return 0


def temporary_beside(path: Path) -> Path:
    """Return a new name beside `path` under which to write what will be `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files in a folder: stopped writers left them, unless somebody is writing there now."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [folder / name for name in names if _TEMPORARY.match(name)]


@contextlib.contextmanager
def sole_writer(folder: Path, *, doing: str) -> Iterator[None]:
    """Be the `sole_owner` of `folder`, and remove what stopped writers left there, if nobody else can be writing."""
    with sole_owner(folder, doing=doing) as is_alone:
        for path in leftovers(folder) if is_alone else ():
            discard(path)
        yield


def write_temporary(path: Path, parts: Sequence[Bytes], *, fs: FileSystem = REAL) -> Path:
    """Write `parts` to a temporary name beside `path`, fsynced, and return that name; leaves nothing on failure."""
    temporary = temporary_beside(path)
    total = sum(memoryview(part).nbytes for part in parts)
    with typed_errors(path, need_bytes=total):
        descriptor = fs.open_exclusive(temporary)
        try:
            try:
                for part in parts:
                    _write_all(fs, descriptor, memoryview(part).cast("B"))
                fs.fsync(descriptor)
            finally:
                fs.close(descriptor)
        except BaseException:
            discard(temporary, fs=fs)
            raise
    return temporary


def _write_all(fs: FileSystem, descriptor: int, data: memoryview) -> None:
    while data.nbytes:
        try:
            written = fs.write(descriptor, data)
        except InterruptedError:
            continue
        if written <= 0:
            raise OSError(errno.EIO, "the disk took no bytes")
        data = data[written:]


def publish_temporary(temporary: Path, path: Path, *, fsync_first: bool = False, fs: FileSystem = REAL) -> None:
    """Give a temporary file its final name and make the name durable.

    Parameters
    ----------
    temporary, path
        Both in one directory.
    fsync_first
        For a file that somebody else wrote (DuckDB): its bytes are brought to the disk before the rename.
    fs
        The calls to the operating system.
    """
    with typed_errors(path):
        try:
            if fsync_first:
                descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fs.fsync(descriptor)
                finally:
                    fs.close(descriptor)
            fs.rename(temporary, path)
        except BaseException:
            discard(temporary, fs=fs)
            raise
        fs.fsync_directory(path.parent)


def publish(path: Path, parts: Sequence[Bytes], *, fs: FileSystem = REAL) -> None:
    """Write `parts` as the file `path`, whole or not at all, replacing what was there."""
    publish_temporary(write_temporary(path, parts, fs=fs), path, fs=fs)


def discard(temporary: Path, *, fs: FileSystem = REAL) -> None:
    """Remove a temporary file if that is possible; what stays is harmless and `tfbind gc` removes it."""
    with contextlib.suppress(OSError):
        fs.unlink(temporary)


def make_directory(path: Path, *, fs: FileSystem = REAL) -> None:
    """Make a directory and its parents, each new name fsynced."""
    missing = [place for place in (path, *path.parents) if not place.exists()]
    with typed_errors(path):
        for place in reversed(missing):
            place.mkdir(exist_ok=True)
            fs.fsync_directory(place.parent)


def open_regular(path: Path | str) -> int:
    """Open a file for reading that must be a regular file and no link; return its descriptor.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    OSError
        If there is a link, a directory, a pipe or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def read_regular(path: Path | str, *, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Return the bytes of a regular file of at most `max_bytes`; a larger one is an OSError."""
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"{size:,} bytes, more than the {max_bytes:,} it may have")
        return os.read(descriptor, size + 1)
    finally:
        os.close(descriptor)


CHECK_FIELD = "check"


def sealed_json(value: Mapping[str, Any]) -> bytes:
    """Return `value` as JSON text with a checksum of the other fields in its field ``check``."""
    body = dict(value)
    body[CHECK_FIELD] = _seal(value)
    return (json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def unsealed_json(text: bytes) -> dict[str, Any]:
    """Read back what `sealed_json` wrote.

    Raises
    ------
    ValueError
        If it is no such JSON or one bit of its content changed.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    check = value.pop(CHECK_FIELD, None)
    if check != _seal(value):
        raise ValueError("its checksum does not fit its content")
    return value


def _seal(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return xxhash.xxh3_64_hexdigest(text.encode("ascii"))


@contextlib.contextmanager
def file_lock(path: Path, *, blocking: bool = True, shared: bool = False) -> Iterator[bool]:
    """Hold an advisory lock on `path`; yields False where another holds it or the disk knows no locks.

    The lock goes when the process ends, however it ends; the file stays. Several may hold it `shared` at once.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError:
        yield False
        return
    try:
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, kind | (0 if blocking else fcntl.LOCK_NB))
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)
