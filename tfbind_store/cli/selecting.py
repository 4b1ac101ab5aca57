"""`tfbind select`: choose the rows that a head trains and is judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from tfbind_store.cli.frame import Command, configured, emit, json_option, key_values, listed, table
from tfbind_store.cli.stores import STORE

SPLITS = ("train", "valid", "test")


@click.command(
    cls=Command,
    examples=[
        "tfbind select yeast.store demo --test-chroms chrII --valid-chroms chrI --bins 4",
        "tfbind select yeast.store no_reb1 --hold-out factor=REB1 --where 'score > $least' -p least=1",
        "tfbind select yeast.store cv --folds 2 --fold-by chrom --negatives gc:1,shifted:1",
        "tfbind select yeast.store demo --show",
        "tfbind select yeast.store demo --diff no_reb1",
        "tfbind select yeast.store again --from yeast.store/selections/demo/selection.json",
    ],
)
@STORE
@click.argument("name")
@click.option("--where", help="SQL condition on the view peaks: which peaks are the positives. All if not given.")
@click.option("-p", "--param", "params", multiple=True, metavar="NAME=VALUE", help="Value bound to $NAME. Repeatable.")
@click.option("--negatives", metavar="LIST", help="Kinds and numbers per positive.  [default: random:1,scoped:1]")
@click.option("--bins", "n_bins", type=int, help="Bins per row.  [default: 1]")
@click.option("--rule", help="When a peak binds a bin: summit, or overlap:0.5.  [default: summit]")
@click.option("--train-chroms", metavar="LIST", help="Chromosomes to train on; all others if not given.")
@click.option("--valid-chroms", metavar="LIST", help="Chromosomes that early stopping looks at.")
@click.option("--test-chroms", metavar="LIST", help="Chromosomes that training never sees.")
@click.option("--split-loci", metavar="SET", help="Imported loci with a split each, in place of chromosomes.")
@click.option("--split-trunk", metavar="ARRAY", help="Train where the trunk of this array was trained, test elsewhere.")
@click.option(
    "--overlap", metavar="WHAT", help="Training rows that read what held-out places read: drop or refuse.  [refuse]"
)
@click.option(
    "--hold-out",
    multiple=True,
    metavar="KIND=NAME",
    help="factor=SOX2, family=SOX2, domain=Homeodomain or biotype=MCF-7. Repeatable.",
)
@click.option(
    "--hold-out-random", multiple=True, metavar="RULE", help="Seeded choice: factor:20:min_peaks=100. Repeatable."
)
@click.option(
    "--hold-out-valid-share", type=float, help="Share of what is held out that validates instead.  [default: 0]"
)
@click.option("--folds", type=int, help="Divide the training part for cross-validation.")
@click.option("--fold-by", metavar="LIST", help="chrom, loci, factor, family, biotype; several nest.  [default: chrom]")
@click.option("--identity", type=float, help="Share of identical residues that makes paralogs.  [default: 0.4]")
@click.option(
    "--allow-leak",
    multiple=True,
    metavar="KIND",
    help="Accept it, and say so in every report: gene, sequence, paralog, treatment, cell_name, window, "
    "receptive_field, trunk.",
)
@click.option("--sample", type=float, help="Share of the positives to take.  [default: 1]")
@click.option("--max-positives", type=int, help="At most so many per experiment and split.  [default: all]")
@click.option("--balance", metavar="LIST", help="Weigh rows so that factors, biotypes, or both count alike.")
@click.option(
    "--margin-bp",
    type=int,
    help="Negatives keep this far from peaks; of several bins the middle one does.  [default: 512]",
)
@click.option(
    "--windows", metavar="LIST", help="Arrays that will be read, embedded or not yet: only their trunks are looked at."
)
@click.option("--signals", metavar="NAME", help="Imported signals, such as ATAC by biotype, as a further input.")
@click.option("--seed", type=int, help="Decides every draw.  [default: 0]")
@click.option("--config", type=click.Path(path_type=Path), help="TOML with any of these and more.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of the config. Repeatable.")
@click.option("--overwrite", is_flag=True, help="Replace a selection of this name.")
@click.option("--show", is_flag=True, help="Show the selection of this name instead of making one.")
@click.option("--diff", "other", metavar="OTHER", help="Say in what the selection of this name differs from another.")
@click.option(
    "--from",
    "again",
    type=click.Path(path_type=Path),
    metavar="JSON",
    help="Make again what a selection.json describes, and say whether it is the same to the byte.",
)
@json_option
def select(
    store: Path,
    name: str,
    params: tuple[str, ...],
    negatives: str | None,
    train_chroms: str | None,
    valid_chroms: str | None,
    test_chroms: str | None,
    hold_out: tuple[str, ...],
    hold_out_random: tuple[str, ...],
    hold_out_valid_share: float | None,
    split_loci: str | None,
    split_trunk: str | None,
    overlap: str | None,
    folds: int | None,
    fold_by: str | None,
    identity: float | None,
    allow_leak: tuple[str, ...],
    balance: str | None,
    windows: str | None,
    config: Path | None,
    settings: tuple[str, ...],
    overwrite: bool,
    show: bool,
    other: str | None,
    again: Path | None,
    as_json: bool,
    **plain: Any,
) -> None:
    """Choose rows: peaks as positives, drawn negatives, and what training must not see.

    A held-out factor takes along every factor that shares a gene or a protein with it; what would leak is refused with
    the rows named. The selection is written once, with its SQL, counts and leaks.
    """
    from tfbind_store.query.compare import differences, remake
    from tfbind_store.query.selection import Selection, SelectionConfig, make_selection
    from tfbind_store.store.folder import Store

    opened = Store.open(store)
    if show:
        _print(name, Selection.open(opened, name).info, as_json=as_json)
        return
    if other is not None:
        _print_differences(differences(Selection.open(opened, name), Selection.open(opened, other)), as_json=as_json)
        return
    if again is not None:
        remade = remake(opened, name, again, overwrite=overwrite)
        why = f": {', '.join(remade.reasons)} differ" if remade.reasons else ""
        said = "the same rows to the byte" if remade.is_same else f"other rows{why}"
        info = {**remade.selection.info, "same_as_described": remade.is_same}
        _print(name, info, as_json=as_json, more=[f"{again}: {said}"])
        return
    split = {
        "train_chroms": listed(train_chroms),
        "valid_chroms": listed(valid_chroms),
        "test_chroms": listed(test_chroms),
        "hold_out": _by_kind(hold_out),
        "hold_out_random": list(hold_out_random),
        "hold_out_valid_share": hold_out_valid_share,
        "loci": split_loci,
        "trunk": split_trunk,
        "overlap": overlap,
        "folds": folds,
        "fold_by": listed(fold_by),
        "identity": identity,
    }
    given = {
        **plain,
        "params": _typed(key_values(params, option="-p")),
        "negatives": listed(negatives),
        "allow_leaks": list(allow_leak),
        "balance": listed(balance),
        "windows": listed(windows),
        "split": {key: value for key, value in split.items() if value not in (None, [], {})},
    }
    chosen = configured(SelectionConfig, config, given, settings)
    report = make_selection(opened, name, chosen, overwrite=overwrite)
    _print(name, report.info, as_json=as_json)


def _by_kind(hold_out: tuple[str, ...]) -> dict[str, list[str]]:
    """Read ``factor=A`` pairs; a name may hold commas, so each has its own option."""
    names: dict[str, list[str]] = {}
    for setting in hold_out:
        kind, equals, name = setting.partition("=")
        if not equals:
            raise click.UsageError(f"--hold-out {setting}: write --hold-out factor=NAME, or another kind before the =")
        names.setdefault(kind, []).append(name)
    return names


def _typed(params: Mapping[str, str]) -> dict[str, Any]:
    """Return numbers as numbers: a bound text never equals a score."""

    def number(text: str) -> Any:
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        return text

    return {name: number(text) for name, text in params.items()}


def _print_differences(found: Mapping[str, Any], *, as_json: bool) -> None:
    text = ["the same rows to the byte"] if found["same"] else []
    text += [f"{key}: {one!r} and {other!r}" for key, (one, other) in found["config"].items()]
    text += [f"{name}: made from {len(rows)} other inputs" for name, rows in found["inputs"].items() if rows]
    text += [
        f"rows in {name if name == 'both' else f'{name} only'}: {count:,}" for name, count in found["rows"].items()
    ]
    for name, of_split in found["only"].items():
        for split, kinds in of_split.items():
            text.append(f"only in {name}, {split}: " + ", ".join(f"{n:,} {kind}" for kind, n in kinds.items()))
    text += [f"rows of both with another {name}: {count:,}" for name, count in found["changed"].items()]
    emit(dict(found), text, as_json=as_json)


def _print(name: str, info: Mapping[str, Any], *, as_json: bool, more: Sequence[str] = ()) -> None:
    kinds = ("positive", *(text.partition(":")[0] for text in info["config"]["negatives"]))
    totals = info["totals"]
    rows = [(split, *(totals[split].get(kind, 0) for kind in kinds)) for split in SPLITS if split in totals]
    text = [f"selection {name}: {info['rows']:,} rows", *table(("split", *kinds), rows)]
    for kind, names in info["held_out"].items():
        held = sorted({*names["valid"], *names["test"]})
        if held:
            text.append(f"held out, {kind}: {', '.join(held)}")
    text += [
        f"fold {fold}: " + ", ".join(f"{sum(kinds.values()):,} {split}" for split, kinds in each["totals"].items())
        for fold, each in enumerate(info["folds"]["each"])
    ]
    text += [f"left out {count:,}: {_words(cause)}" for cause, count in info["dropped"].items() if count]
    text += [
        f"too few {kind} negatives: {lack['rows']:,} rows short in {lack['experiments']:,} experiments"
        for kind, lack in info["shortfall"].items()
    ]
    text += [f"{_words(what)}: {count:,}" for what, count in info["warnings"].items()]
    text += [*map(str, info["notes"]), *more]
    if signals := info.get("signals"):
        text.append(f"{signals['array']}: {len(signals['with']):,} biotypes have a signal")
        if signals["without"]:
            text.append(f"without one: {', '.join(signals['without'][:8])}")
    emit({"name": name, **info}, text, as_json=as_json)


def _words(name: str) -> str:
    return name.replace("_", " ")
