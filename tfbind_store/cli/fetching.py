"""Commands for those with a network: fetch, cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from tfbind_store.cli.frame import Command, emit, json_option, key_values, size_text, table

MODEL_FILES = ("*.json", "*.safetensors", "pytorch_model*.bin", "*.txt", "*.model")
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(cls=Command, examples=["tfbind fetch --list"])
@click.argument("names", nargs=-1)
@click.option("--list", "as_list", is_flag=True, help="Show what can be fetched.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="A field of a source's address.")
@click.option("--sources", type=FILE, help="A table of your own in place of the built-in one.")
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="Weights: a hub id, PubMedBERT, esm2_t33_650M_UR50D, …"
)
@click.option("--cache", "folder", type=FOLDER, help="Where files go; default $TFBIND_CACHE.")
@click.option("--offline", is_flag=True, help="Only say where files lie; touch no network.")
@json_option
def fetch(
    names: tuple[str, ...],
    as_list: bool,
    settings: tuple[str, ...],
    sources: Path | None,
    models: tuple[str, ...],
    folder: Path | None,
    offline: bool,
    as_json: bool,
) -> None:
    """Download files by NAME into the cache and print where they lie; what is there already is only checked."""
    from tfbind_store import fetch as library

    known = library.read_sources(sources)
    if as_list or not (names or models):
        rows = [(name, source.about, source.url) for name, source in known.items()]
        emit({name: source for name, source in known.items()}, table(("name", "what", "from"), rows), as_json=as_json)
        return
    fields = key_values(settings, option="--set")
    found = [library.fetch(name, sources=known, fields=fields, cache=folder, offline=offline) for name in names]
    lines = [f"{file.path}  {size_text(file.size_bytes)}, {'new' if file.is_new else 'there before'}" for file in found]
    places = {model: _model(model, offline=offline) for model in models}
    lines += [str(place) for place in places.values()]
    emit({"files": found, "models": places}, lines, as_json=as_json)


def _model(name: str, *, offline: bool) -> Path:
    from tfbind_store.precompute.weights import HUB_ID, hub_folder

    if HUB_ID.fullmatch(name):
        return hub_folder(name, files=MODEL_FILES, allow_download=not offline)
    from tfbind_store.precompute.bert import PUBLISHED

    if name.lower() in PUBLISHED:
        return hub_folder(PUBLISHED[name.lower()], files=MODEL_FILES, allow_download=not offline)
    from tfbind_store.precompute.esm import weights_place

    return weights_place(name, not offline)


@click.command(cls=Command, examples=["tfbind cache"])
@click.option("--clear", "clear_all", is_flag=True, help="Remove all downloads and unfinished ones.")
@click.option("--clear-trainers", is_flag=True, help="Remove the stores that Trainer made, with their runs.")
@click.option("--remove", multiple=True, metavar="FILE", help="Remove one download.")
@click.option("--cache", "folder", type=FOLDER, help="Which folder; default $TFBIND_CACHE.")
@json_option
def cache(clear_all: bool, clear_trainers: bool, remove: tuple[str, ...], folder: Path | None, as_json: bool) -> None:
    """Show downloads, the stores of trainers and where models lie; remove what is asked. Models are left alone."""
    from tfbind_store import fetch as library

    place = folder or library.cache_folder()
    trainers = place / "trainers"
    freed = 0
    if clear_all or remove:
        freed += library.clear(place, files=None if clear_all else list(remove))
    if clear_trainers:
        freed += library.clear_trainers(trainers)
    records = library.read_records(place)
    value: dict[str, Any] = {
        "folder": place,
        "files": records,
        "trainers": library.trainer_stores(trainers),
        "freed_bytes": freed,
        "models": _model_folders(),
    }
    lines = [f"{place}: {len(records)} files, {size_text(sum(r['size_bytes'] for r in records.values()))}"]
    lines += [f"  {name}  {size_text(record['size_bytes'])}  {record['url']}" for name, record in records.items()]
    lines += [f"trainers: {trainers / name}  {size_text(size)}" for name, size in value["trainers"].items()]
    lines += [f"models: {path}  {size_text(size)}" for path, size in value["models"].items()]
    if clear_all or remove or clear_trainers:
        lines.append(f"{size_text(freed)} freed")
    emit(value, lines, as_json=as_json)


def _model_folders() -> dict[str, int]:
    """Return the folders in which model libraries keep weights, with their sizes; nothing heavy is imported."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or base / "huggingface") / "hub")
    torch_hub = Path(os.environ.get("TORCH_HOME") or base / "torch") / "hub" / "checkpoints"
    return {str(path): _size(path) for path in (hub, torch_hub) if path.is_dir()}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
