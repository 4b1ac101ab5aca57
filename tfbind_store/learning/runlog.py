"""What a run reports as it goes: JSON lines and CSV always, TensorBoard and Weights & Biases on request.

Both files are replaced whole at each line, so that a kill leaves no half line and a resumed run can forget what came
after its last saved state. Weights & Biases writes into the run's folder without a network or a login
(``wandb sync`` sends it later).
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from tfbind_store.durable import publish
from tfbind_store.errors import ConfigError, DependencyError

JSONL, CSV = "log.jsonl", "log.csv"
TRACKERS = ("tensorboard", "wandb")


class Tracker(Protocol):
    """Somebody else's log."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers at a step."""

    def close(self) -> None:
        """Finish."""


class RunLog:
    """The log of one run.

    Parameters
    ----------
    folder
        The run's.
    trackers
        ``tensorboard``, ``wandb``.
    about
        The run's config, for the trackers.
    """

    def __init__(self, folder: Path, *, trackers: Sequence[str] = (), about: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self._names, self._about = tuple(trackers), dict(about or {})
        self._lines: list[dict[str, float]] = []
        self._trackers: list[Tracker] | None = None
        require_trackers(self._names)

    @property
    def lines(self) -> list[dict[str, float]]:
        """What was written so far, by this process and those before it."""
        return list(self._lines)

    def rewind(self, step: int) -> None:
        """Forget what a stopped run wrote after its last saved state, at `step`."""
        path = self.folder / JSONL
        if path.exists():
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
            self._lines = [line for line in lines if line["step"] <= step]

    def write(self, line: Mapping[str, float]) -> None:
        """Add a line with its ``step``; numbers that are not finite are left out."""
        kept = {key: value for key, value in line.items() if math.isfinite(value)}
        self._lines.append(kept)
        publish(self.folder / JSONL, ["".join(json.dumps(line) + "\n" for line in self._lines).encode()])
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(k for line in self._lines for k in line)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._lines)
        publish(self.folder / CSV, [text.getvalue().encode()])
        values = {key: value for key, value in kept.items() if key != "step"}
        for tracker in self._opened(int(kept["step"])):
            tracker.write(int(kept["step"]), values)

    def close(self) -> None:
        """Let the trackers finish."""
        for tracker in self._trackers or ():
            tracker.close()
        self._trackers = None

    def _opened(self, first_step: int) -> list[Tracker]:
        if self._trackers is None:
            makers: dict[str, Callable[..., Tracker]] = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}
            self._trackers = [makers[name](self.folder, self._about, first_step) for name in self._names]
        return self._trackers


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or not installed, before anything is trained."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"unknown tracker {name!r}", where="trackers", fix=f"known: {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            fix = f"pip install 'tfbind-store[{name}]'"
            raise DependencyError(f"{name} is not installed", where="trackers", fix=fix)


class _TensorBoard:
    """Event files in ``tensorboard/``."""

    def __init__(self, folder: Path, about: Mapping[str, Any], first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # what an earlier process wrote from here on is hidden by TensorBoard itself
        self.writer: Any = SummaryWriter(folder / "tensorboard", purge_step=first_step)
        self.writer.add_text("config", f"```\n{json.dumps(about, indent=2, default=str)}\n```")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases:
    """An offline run in ``wandb/``, whatever the environment says, unless it says ``WANDB_MODE=online``."""

    def __init__(self, folder: Path, about: Mapping[str, Any], first_step: int) -> None:
        import wandb

        mode: Literal["online", "offline"] = "online" if os.environ.get("WANDB_MODE") == "online" else "offline"
        self.run: Any = wandb.init(
            project="tfbind", name=folder.name, dir=str(folder), config=dict(about), mode=mode, reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True),
        )  # fmt: skip

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()
