"""The ``tfbind`` command: one module per part of the flow, in the order in which a user meets them."""

from __future__ import annotations

import click

from tfbind_store import __version__
from tfbind_store.cli import (
    browsing,
    doctor,
    embedding,
    fetching,
    importing,
    interpreting,
    keeping,
    learning,
    predicting,
    preparing,
    projecting,
    running,
    selecting,
    stores,
    tuning,
)
from tfbind_store.cli.frame import MainGroup


@click.group(
    "tfbind", cls=MainGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="tfbind")
def main() -> None:
    """Predict where a transcription factor binds, from embeddings that are computed once and stored.

    The flow: init, import, select, pretrain, embed, train, evaluate, report. `tfbind COMMAND --help` ends with an
    example that runs; `tfbind demo` runs all of it on a small genome.
    """


for command in (
    fetching.fetch,
    fetching.cache,
    preparing.prepare,
    stores.init,
    importing.import_,
    stores.info,
    stores.sql,
    selecting.select,
    learning.pretrain,
    embedding.plan,
    embedding.embed,
    projecting.project,
    keeping.verify,
    keeping.repair,
    keeping.gc,
    keeping.rebuild_catalog,
    learning.train,
    tuning.finetune,
    learning.evaluate,
    predicting.train_tracks,
    predicting.predict_tracks,
    predicting.train_signal,
    predicting.predict,
    predicting.score,
    interpreting.interpret,
    interpreting.residues,
    learning.report,
    browsing.browse,
    running.demo,
    doctor.doctor,
):
    main.add_command(command)
