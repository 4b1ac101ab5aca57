"""The folder of a training run, ``runs/<name>/``: what lies in it, whose it is, and whether it is at its end.

``config.toml`` says what is trained on what; ``head.safetensors`` holds the best weights by validation,
``last.safetensors`` the newest that were looked at; ``state.safetensors`` is all that is needed to go on after a kill,
and is gone once the run is finished; ``log.jsonl`` and ``log.csv`` are `learning.runlog`'s.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tfbind_store import config as configs
from tfbind_store.durable import publish, sole_writer, typed_errors
from tfbind_store.errors import ConfigError, TrainingError
from tfbind_store.query.selection import Selection
from tfbind_store.scoring.bins import HEAD_FILE
from tfbind_store.training.config import TrainConfig

CONFIG_FILE = "config.toml"


@dataclass(frozen=True)
class RunFolder:
    """Where one run of one config on one selection lies, or will."""

    path: Path
    text: str
    """What ``config.toml`` says of it."""

    @staticmethod
    def of(path: Path, selection: Selection, config: TrainConfig) -> RunFolder:
        """Return the folder of a run; nothing is written."""
        about = f"# selection: {selection.name}, rows {selection.info['rows_sha256']}"
        return RunFolder(path, f"{about}\n{configs.to_toml(config)}")

    @property
    def head(self) -> Path:
        """The best head."""
        return self.path / HEAD_FILE

    @property
    def last(self) -> Path:
        """The newest head that was looked at."""
        return self.path / "last.safetensors"

    @property
    def state(self) -> Path:
        """Where a stopped run goes on."""
        return self.path / "state.safetensors"

    @property
    def config(self) -> Path:
        """What is trained."""
        return self.path / CONFIG_FILE

    @property
    def has_ended(self) -> bool:
        """Whether some run came to its end here."""
        return self.head.exists() and not self.state.exists()

    @property
    def is_of_this_config(self) -> bool:
        """Whether the run that is here is this one."""
        return self.config.exists() and self.config.read_text(encoding="utf-8") == self.text

    def require_free(self, *, overwrite: bool) -> None:
        """Refuse a run that is finished or was made with another config.

        Raises
        ------
        ConfigError
            If a run of another config or selection is here.
        TrainingError
            If this very run is finished.
        """
        if overwrite or not self.config.exists():
            return
        name, fix = self.path.name, "choose another name: --run, or --overwrite"
        if not self.is_of_this_config:
            what = f"run {name!r} was made with another config or selection"
            raise ConfigError(what, where=str(self.config), fix=fix)
        if self.has_ended:
            raise TrainingError(f"run {name!r} is finished", where=str(self.path), fix=fix)

    @contextlib.contextmanager
    def begun(self, *, overwrite: bool) -> Iterator[None]:
        """Make the folder with its config and keep other processes out; with `overwrite`, what was here is gone.

        Raises
        ------
        StoreBusy
            If another process trains this run.
        """
        with typed_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with sole_writer(self.path, doing=f"training run {self.path.name!r}"):
            with typed_errors(self.path):
                for old in self.path.iterdir() if overwrite else ():
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
                publish(self.config, [self.text.encode()])
            yield
