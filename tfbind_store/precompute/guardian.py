"""A small process that outlives a killed driver just long enough to end what the driver had started.

Ray's own servers notice the death of their driver late, or not at all on a busy machine. The guardian is told their
process ids; when the driver is gone it kills them and their children. It needs ``/proc``; elsewhere it does nothing.

    python -m tfbind_store.precompute.guardian DRIVER PID...
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

WATCH_SECONDS = 0.5
_PROC = Path("/proc")


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that has ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
        return _state(pid) != "Z"
    except PermissionError:
        return True
    except OSError as error:
        return not isinstance(error, ProcessLookupError) and not (_PROC / "self").exists()


def _state(pid: int) -> str:
    return (_PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]


def descendants(pid: int) -> list[int]:
    """Return the children of a process, their children, and so on; nothing where there is no ``/proc``."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in (_PROC / str(pid) / "task").iterdir():
            for child in map(int, (task / "children").read_text(encoding="ascii").split()):
                found += [child, *descendants(child)]
    return found


@contextlib.contextmanager
def guarded(pids: Sequence[int]) -> Iterator[None]:
    """End `pids` and their descendants if this process is killed inside the block."""
    if not pids:
        yield
        return
    command = [sys.executable, "-m", __name__, str(os.getpid()), *map(str, pids)]
    guardian = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        guardian.kill()
        guardian.wait()


def main(driver: int, pids: Sequence[int]) -> None:
    """Wait for the end of `driver`, then end `pids` and what they have started."""
    born = {pid: _birth(pid) for pid in pids}
    while is_alive(driver):
        time.sleep(WATCH_SECONDS)
    same = [pid for pid in pids if born[pid] and _birth(pid) == born[pid]]  # no other process under an old number
    for doomed in [*same, *(child for pid in same for child in descendants(pid))]:
        with contextlib.suppress(OSError):
            os.kill(doomed, signal.SIGKILL)


def _birth(pid: int) -> str:
    """Return when a process began, in the kernel's own count; empty where it is not there."""
    try:
        return (_PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        return ""


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(word) for word in sys.argv[2:]])
