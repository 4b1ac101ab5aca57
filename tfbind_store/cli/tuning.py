"""`tfbind finetune`, and what `tfbind plan --finetune` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tfbind_store.cli.frame import Command, configured, emit, json_option, size_text, table
from tfbind_store.cli.learning import CONFIG, SET, run_place
from tfbind_store.errors import ConfigError


@click.command(
    cls=Command,
    examples=[
        "tfbind finetune yeast.store/runs/adapter trunk/ tuned/ --mode last:1 --steps 2",
        "tfbind finetune yeast.store/runs/adapter trunk/ norms/ --steps 2 --run norms --set shift_bp=0 --json",
    ],
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("trunk", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--mode", metavar="MODE", help="layernorm, last:N, all, or head.  [default: layernorm]")
@click.option("--run", "new_run", metavar="NAME", help="Name of the new run.  [default: RUN-tuned]")
@click.option("--steps", type=int, help="Optimizer steps.  [default: 500]")
@click.option("--lr", type=float, help="Highest learning rate of the head.  [default: 3e-4]")
@click.option("--trunk-lr", type=float, help="Of the trunk.  [default: 3e-5]")
@click.option("--device", help="cpu or cuda.  [default: auto]")
@click.option("--seed", type=int, help="Decides order, shifts, strands and draws.  [default: 0]")
@click.option("--overwrite", is_flag=True, help="Replace a trunk and a run that are there.")
@CONFIG
@SET
@json_option
def finetune(
    run: Path,
    trunk: Path,
    out: Path,
    new_run: str | None,
    overwrite: bool,
    config: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Train the head of RUN and its TRUNK on together, end to end; a stopped run goes on.

    Writes a new trunk into the folder OUT and a new run beside RUN. The new head reads embeddings of the new trunk,
    which `tfbind embed` makes before it is evaluated. TRUNK must be what the embeddings of RUN were made with.
    """
    from tfbind_store.finetuning.finetune import FinetuneConfig, finetune_run
    from tfbind_store.store.folder import Store

    chosen = configured(FinetuneConfig, config, given, settings)
    place, name = run_place(run)
    store = Store.open(place)
    result = finetune_run(store, name, trunk, out, chosen, new_run=new_run, overwrite=overwrite)
    trained = ", ".join(f"{number} of {part}" for part, number in result.trained.items())
    resumed = ", resumed" if result.was_resumed else ""
    text = [
        f"trunk: {result.trunk}, {result.steps:,} steps in {result.seconds:.0f} s{resumed}; tensors trained: {trained}",
        *(f"{key.replace('_', ' ')}: {result.before.get(key, float('nan')):.4g} before, {value:.4g} at the best step"
          for key, value in result.metrics.items() if key != "step"),
        f"next: {result.next_command}",
    ]  # fmt: skip
    emit(result, text, as_json=as_json)


def show_memory(store: Path, run: str, trunk: Path | None, settings: tuple[str, ...], *, as_json: bool) -> None:
    """Print what each mode of fine-tuning a run needs."""
    from tfbind_store.finetuning.config import FinetuneConfig
    from tfbind_store.finetuning.live_model import require_trunk_of
    from tfbind_store.finetuning.memory import finetune_memory
    from tfbind_store.precompute.enformer import load_trunk
    from tfbind_store.scoring.bins import load_run
    from tfbind_store.store.folder import Store

    if trunk is None:
        raise ConfigError("the trunk is not named", where="plan --finetune", fix="--checkpoint TRUNK")
    opened, chosen = Store.open(store), configured(FinetuneConfig, None, {}, settings)
    loaded, model = load_run(opened, run), load_trunk(trunk)
    spec = require_trunk_of(opened, loaded.arrays.windows, model)
    rows = finetune_memory(
        model.model,
        loaded.head,
        opened.grid,
        chosen,
        strands=2 if spec.identity["strand"] == "mean" else 1,
        final=spec.identity["layer"] == "trunk",
    )
    shown = [
        (row.mode, row.tensors, row.parameters, size_text(row.weights_bytes), size_text(row.optimizer_bytes),
         size_text(row.checkpointed_bytes), size_text(row.kept_bytes), size_text(row.total_bytes))
        for row in rows
    ]  # fmt: skip
    header = ("mode", "tensors", "parameters", "weights", "gradients, Adam", "activations", "unchecked", "together")
    text = [
        f"fine-tuning {run}: {chosen.windows_per_step} windows of {opened.grid.window_bp:,} bp per step",
        *table(header, shown),
        "activations are with checkpointing; unchecked: without",
    ]
    value = [{**row._asdict(), "total_bytes": row.total_bytes} for row in rows]
    emit({"run": run, "windows_per_step": chosen.windows_per_step, "modes": value}, text, as_json=as_json)
