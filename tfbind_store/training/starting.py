"""What a training run begins with: the signals that its head reads, its batches, and the head itself."""

from __future__ import annotations

from tfbind_store.errors import ConfigError
from tfbind_store.feeding.feed import DenseFeed
from tfbind_store.heads import Geometry, Head, make_head
from tfbind_store.heads.base import reads_signals
from tfbind_store.heads.filip import FilipHead
from tfbind_store.learning.processes import Processes
from tfbind_store.query.loader import Loader
from tfbind_store.query.strands import other_strand
from tfbind_store.scoring.signals import HALF_WIDTHS, Signals
from tfbind_store.training.batches import BatchSource, DenseSource, RowSignals, RowSource
from tfbind_store.training.config import TrainConfig
from tfbind_store.training.material import Material
from tfbind_store.training.strengths import Strengths, training_strengths


def signals_read(material: Material, config: TrainConfig, head: Head | None) -> Signals | None:
    """Return the signals that the head is to read, where the selection declares some and it can."""
    name, store = material.selection.config.signals, material.store
    can = reads_signals(config.head) if head is None else head.signal is not None
    if not name or config.signals != "head" or not can:
        return None
    return Signals(store, store.array_name_for("signals", name))


def batch_source(
    material: Material, config: TrainConfig, feed: DenseFeed, processes: Processes, signals: Signals | None
) -> BatchSource:
    """Return the batches of a run: bins against experiments, or the selection's rows.

    Raises
    ------
    ConfigError
        If rows are to be read from both strands and the store has one.
    """
    if config.pairing == "dense":
        return DenseSource(feed, processes)
    loader = Loader(
        material.store, material.selection, "train",
        arrays=material.arrays, batch_size=config.batch_rows, seed=config.seed, balance=config.balance,
        reverse=_other_strand(material) if config.both_strands else "",
    )  # fmt: skip
    with_signals = None if signals is None else RowSignals(material.store, material.selection, signals)
    return RowSource(loader, material.source.device, processes, with_signals)


def new_head(material: Material, config: TrainConfig, feed: DenseFeed, signals: Signals | None) -> Head:
    """Return an untrained head, its inputs scaled by training bins; torch's global generator draws its weights.

    Raises
    ------
    ConfigError
        If an option is not one of the head's.
    """
    options = dict(config.options)
    if signals is not None:
        options["signal_scales"] = len(HALF_WIDTHS)
    try:
        head = make_head(config.head, _stored(material), options)
    except TypeError as error:  # an unknown option, with the nearest known one
        raise ConfigError(str(error), where="options", fix="--set options.NAME=VALUE with one of these") from error
    head.fit_scaling(feed.scaling(), prevalence=feed.prevalence)
    return head.to(material.source.device)


def taken_head(material: Material, head: Head) -> Head:
    """Return a head that somebody made, to be trained on from where it stands.

    Raises
    ------
    ConfigError
        If it reads other widths than are stored.
    """
    if head.geometry != _stored(material):
        found = f"{tuple(head.geometry)}, stored are {tuple(_stored(material))}"
        what = f"the head reads DNA, proteins and contexts of {found}"
        raise ConfigError(what, where="head", fix="use the embedders that the head was made for")
    return head.to(material.source.device)


def strengths_read(head: Head, material: Material, config: TrainConfig) -> Strengths | None:
    """Return what a head needs that learns read values beside labels; None if it does not.

    Raises
    ------
    ConfigError
        If training is not on rows.
    """
    if not (isinstance(head, FilipHead) and head.read_values is not None):
        return None
    if config.pairing != "rows":
        fix = "--set pairing=rows, or options.read_values=0"
        raise ConfigError("read values are of rows, training is dense", where="options.read_values", fix=fix)
    return training_strengths(material.store, material.selection, material.source.device)


def _stored(material: Material) -> Geometry:
    return Geometry(*(material.store.array(name).shape[-1] for name in material.arrays))


def _other_strand(material: Material) -> str:
    """Return the array that holds the other strand of the windows."""
    store, name = material.store, material.arrays.windows
    found = other_strand(store, name)
    if found is None:
        fix = f"tfbind embed {store.path} windows --name NAME --set strand=reverse, with the same model"
        raise ConfigError(f"the store has no other strand of {name}", where="both_strands", fix=fix)
    return found
