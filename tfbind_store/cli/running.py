"""`tfbind demo`: everything at once, on a small invented genome."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from tfbind_store.cli.frame import Command, emit, json_option, show_log_of
from tfbind_store.errors import StoreExists

DEFAULT_FOLDER = Path("demo-store")


@click.command(cls=Command, examples=["tfbind demo demo-store"])
@click.argument("folder", type=click.Path(path_type=Path), default=DEFAULT_FOLDER)
@click.option("--seed", default=0, show_default=True, help="Decides the genome, all draws and all first weights.")
@click.option("--overwrite", is_flag=True, help="Remove what an earlier demo left in FOLDER.")
@json_option
def demo(folder: Path, seed: int, overwrite: bool, as_json: bool) -> None:
    """Invent a small genome with planted binding sites and run every stage on it; needs no download, takes minutes.

    Ends with scores on chromosomes and on a factor that were held out, beside their baselines and beside a control
    whose labels were permuted, and with the path of the report.
    """
    from tfbind_store.demo.run import demo_table, run_demo

    if overwrite:
        _remove_demo(folder)
    show_log_of("demo")
    result = run_demo(folder, seed=seed)
    emit(result, demo_table(result), as_json=as_json)


def _remove_demo(folder: Path) -> None:
    """Remove `folder` if it is a demo's: nothing else is anybody's to delete."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "inputs").is_dir():
        raise StoreExists("this is not an earlier demo's folder", where=str(folder), fix="choose another folder")
    shutil.rmtree(folder)
