"""Stop a long run when asked to: at the next safe point, or at once on the second request.

SIGTERM, Ctrl-C and Slurm's USR2 set a flag that the run looks at between windows, so that what was computed is
published first. If no safe point comes within `GRACE_SECONDS` (one huge window on a slow machine), the run is abandoned
where it stands: publishing is atomic, so nothing is torn.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from tfbind_store.errors import Interrupted

GRACE_SECONDS = 20.0
EXIT_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR2: 143}
"""USR2 is how Slurm tells that a job is about to be preempted."""


class StopRequest:
    """Whether somebody asked this process to stop, and how."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        """Whether to stop at the next safe point."""
        return self.signal_number is not None

    def error(self, what: str, *, where: str = "", fix: str = "run the same command again") -> Interrupted:
        """Return the error that ends the command with the signal's exit status."""
        number = self.signal_number or signal.SIGINT
        error = Interrupted(f"stopped by {signal.Signals(number).name}: {what}", where=where, fix=fix)
        error.exit_status = EXIT_STATUS.get(signal.Signals(number), 130)
        return error


@contextlib.contextmanager
def stop_requests(*, grace_seconds: float = GRACE_SECONDS) -> Iterator[StopRequest]:
    """Catch SIGTERM, SIGINT and SIGUSR2 inside the block; outside the main thread nothing is caught.

    Raises
    ------
    Interrupted
        On the second signal, or when `grace_seconds` have passed since the first.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if request:
            raise request.error("abandoned at once; what was published is kept")
        request.signal_number = number
        signal.setitimer(signal.ITIMER_REAL, grace_seconds)

    def on_alarm(number: int, frame: FrameType | None) -> None:
        raise request.error(f"abandoned after {grace_seconds:g} s; what was published is kept")

    asked = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGUSR2), on_signal)
    handlers = {**asked, signal.SIGALRM: on_alarm}
    before: dict[signal.Signals, Any] = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield request
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
