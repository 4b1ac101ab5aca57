"""`tfbind import`: one command per kind of outside file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfbind_store.cli.frame import Group, Kept, emit, json_option, key_values, listed
from tfbind_store.cli.stores import STORE

if TYPE_CHECKING:
    from tfbind_store.ingest import ImportReport

SOURCE = click.argument("path", type=click.Path(path_type=Path))
STRICT = click.option("--strict", is_flag=True, help="Make an error of anything that would be dropped.")
COLUMN = click.option(
    "--column", "columns", multiple=True, metavar="KEY=COLUMN", help="Where a table calls a column something else."
)
BIOTYPE = click.option("--biotype", help="Biotype of all rows of a table that names none.")


def drop_option(causes: str) -> Kept:
    """Return the option ``--drop`` with the causes that can be asked for."""
    help_text = f"Leave out and count what would else refuse the file: {causes}. Repeatable."
    return click.option("--drop", multiple=True, metavar="CAUSE", help=help_text)


PLACES = "unknown_chromosome, beyond_end, bad_line"


@click.group("import", cls=Group)
def import_() -> None:
    """Bring outside files into a store.

    Everything that is left out is counted by cause and printed. The same file again changes nothing. A file that
    cannot be used leaves the store as it was.
    """


def _print_report(report: ImportReport, *, as_json: bool) -> None:
    text = [f"{report.kind}: {report.rows_kept:,} of {report.rows_read:,} rows kept from {report.path}"]
    text += [f"  left out {count:,}: {cause.replace('_', ' ')}" for cause, count in report.dropped.items() if count]
    text += [f"  {note}" for note in report.notes]
    emit(report, text, as_json=as_json)


@import_.command(
    "peaks",
    examples=[
        "tfbind import peaks yeast.store peaks.bed.gz",
        "tfbind import peaks yeast.store peaks/ --name-from '{accession}.{factor}.BY4741' --drop beyond_end",
        "tfbind import peaks yeast.store more/ --experiments more.tsv --column factor=Target --biotype BY4741",
    ],
)
@STORE
@SOURCE
@click.option("--relaxed", is_flag=True, help="These are lenient calls: near them but no peak means ambiguous.")
@click.option("--format", metavar="NAME", help="bed, narrowpeak, broadpeak or remap; found out if not given.")
@click.option(
    "--name-from",
    "experiment_template",
    metavar="TEMPLATE",
    help="ACCESSION.FACTOR.BIOTYPE made of {name} (column 4), or of the file's name: {stem}, {accession}, {factor}.",
)
@click.option("--experiments", "experiments_tsv", type=click.Path(path_type=Path), help="Table with a row per file.")
@COLUMN
@BIOTYPE
@click.option("--labelled-chroms", metavar="LIST", help="Chromosomes taken as looked at; or all; or union.")
@click.option("--aliases", type=click.Path(path_type=Path), help="Two columns: another name, the store's name.")
@drop_option(f"{PLACES}, bad_name")
@STRICT
@json_option
def import_peaks(
    store: Path, path: Path, columns: tuple[str, ...], labelled_chroms: str | None, as_json: bool, **options: Any
) -> None:
    """Import peaks: BED3 to BED6+, narrowPeak, ReMap, or a folder with one file per experiment; all may be .gz.

    In a single file, column 4 names each peak's experiment as ACCESSION.FACTOR.BIOTYPE. A chromosome with no row at all
    in a file is taken as unlabelled for its experiments, not as unbound; --labelled-chroms says otherwise.
    """
    from tfbind_store import ingest
    from tfbind_store.store.folder import Store

    one_word = labelled_chroms in ("all", "union")
    report = ingest.import_peaks(
        Store.open(store),
        path,
        columns=key_values(columns, option="--column") or None,
        labelled_chroms=labelled_chroms if one_word else listed(labelled_chroms) or None,
        **options,
    )
    _print_report(report, as_json=as_json)


@import_.command("factors", examples=["tfbind import factors yeast.store proteins.fa.gz --synonyms names.tsv"])
@STORE
@SOURCE
@click.option("--synonyms", multiple=True, type=click.Path(path_type=Path), help="Table of gene names. Repeatable.")
@click.option("--species", multiple=True, help="Species to prefer where a gene has several proteins. Repeatable.")
@drop_option("bad_sequence")
@STRICT
@json_option
def import_factors(store: Path, path: Path, species: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Import proteins: a FASTA (UniProt GN= or gene= headers) or a folder of GENE.UNIPROT.fasta."""
    from tfbind_store import ingest
    from tfbind_store.store.folder import Store

    if species:
        options["species_priority"] = species
    _print_report(ingest.import_proteins(Store.open(store), path, **options), as_json=as_json)


@import_.command("biotypes", examples=["tfbind import biotypes yeast.store cells.tsv"])
@STORE
@SOURCE
@click.option("--template", help="The text made of each row, with {column} names. A good one is built in.")
@click.option("--key", metavar="COLUMN", help="The column that names the biotype, where it is not called so.")
@STRICT
@json_option
def import_biotypes(
    store: Path, path: Path, template: str | None, key: str | None, strict: bool, as_json: bool
) -> None:
    """Import cell types: a CSV or TSV whose column 'biotype' holds the names that the peaks use."""
    from tfbind_store import ingest
    from tfbind_store.store.folder import Store

    options: dict[str, Any] = {"template": template} if template else {}
    report = ingest.import_biotypes(Store.open(store), path, key=key, strict=strict, **options)
    _print_report(report, as_json=as_json)


@import_.command(
    "experiments",
    examples=[
        "tfbind import experiments yeast.store experiments.tsv",
        "tfbind import experiments yeast.store unbound.tsv --source peaks.bed.gz",
    ],
)
@STORE
@SOURCE
@COLUMN
@BIOTYPE
@click.option("--source", metavar="FILE", help="Imported peak file that covered these experiments, also unbound ones.")
@STRICT
@json_option
def import_experiments(store: Path, path: Path, columns: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Import metadata of experiments: a table with the column 'experiment', or ReMap's experiments.json.

    With --source, experiments that have no peak at all are added: labelled where that file has looked, bound nowhere.
    """
    from tfbind_store import ingest
    from tfbind_store.store.folder import Store

    named = key_values(columns, option="--column") or None
    report = ingest.import_experiments(Store.open(store), path, columns=named, **options)
    _print_report(report, as_json=as_json)


@import_.command("families", examples=["tfbind import families yeast.store domains.tsv"])
@STORE
@SOURCE
@STRICT
@json_option
def import_families(store: Path, path: Path, strict: bool, as_json: bool) -> None:
    """Import DNA-binding domains of genes: a table with columns gene and domain, for --hold-out domain=NAME."""
    from tfbind_store import ingest
    from tfbind_store.store.folder import Store

    _print_report(ingest.import_families(Store.open(store), path, strict=strict), as_json=as_json)


@import_.command("trunk", examples=["tfbind import trunk yeast.store targets_human.txt --name enformer"])
@STORE
@SOURCE
@click.option("--name", required=True, help="What the trunk is called.")
@STRICT
@json_option
def import_trunk(store: Path, path: Path, name: str, strict: bool, as_json: bool) -> None:
    """Import what a trunk was trained on: Basenji's table of targets, or columns factor and biotype.

    Selections then refuse to hold out what it has seen. Its own split of the genome is a set of loci of the same name.
    """
    from tfbind_store import ingest
    from tfbind_store.store.folder import Store

    _print_report(ingest.import_trunk(Store.open(store), path, name, strict=strict), as_json=as_json)


@import_.command("loci", examples=["tfbind import loci yeast.store promoters.bed --name promoters"])
@STORE
@SOURCE
@click.option("--name", required=True, help="Name of the set; a second file under it adds to it.")
@click.option("--split", type=click.Choice(["train", "valid", "test"]), help="Split of all loci in the file.")
@drop_option(PLACES)
@STRICT
@json_option
def import_loci(store: Path, path: Path, name: str, as_json: bool, **options: Any) -> None:
    """Import a set of loci from a BED, to select by or to embed."""
    from tfbind_store import ingest
    from tfbind_store.store.folder import Store

    _print_report(ingest.import_loci(Store.open(store), path, name, **options), as_json=as_json)


@import_.command(
    "negatives",
    examples=[
        "tfbind import negatives yeast.store random-ranges.bed",
        "tfbind import negatives yeast.store peaks.bed.gz --scoped negative-peaks/",
    ],
)
@STORE
@SOURCE
@click.option("--scoped", type=click.Path(path_type=Path), help="Folder of EXPERIMENT.bed.bool.npy over its rows.")
@click.option("--per-experiment", type=int, default=10_000, show_default=True, help="Rows kept of each array.")
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses them.")
@drop_option(PLACES)
@STRICT
@json_option
def import_negatives(store: Path, path: Path, as_json: bool, **options: Any) -> None:
    """Import loci that are not bound: in any experiment, or in those that arrays name; for --negatives listed:1."""
    from tfbind_store import ingest
    from tfbind_store.store.folder import Store

    _print_report(ingest.import_negatives(Store.open(store), path, **options), as_json=as_json)


@import_.command("blacklist", examples=["tfbind import blacklist yeast.store blacklist.bed"])
@STORE
@SOURCE
@click.option("--name", help="Name of the list; the file's if not given.")
@drop_option(PLACES)
@STRICT
@json_option
def import_blacklist(store: Path, path: Path, as_json: bool, **options: Any) -> None:
    """Import loci that are neither positive nor negative."""
    from tfbind_store import ingest
    from tfbind_store.store.folder import Store

    _print_report(ingest.import_blacklist(Store.open(store), path, **options), as_json=as_json)


def _binning(function: Kept) -> Kept:
    """Add the options of bigWigs: what is of what, and how bases become bins."""
    options: list[Kept] = [
        STORE,
        click.argument("path", metavar="FOLDER", type=click.Path(path_type=Path)),
        click.option(
            "--annotation",
            required=True,
            type=click.Path(path_type=Path),
            help="experimentList.tab of ChIP-Atlas, metadata.tsv of ENCODE, or a table with a column 'track'.",
        ),
        click.option("--assembly", help="Rows of this assembly only."),
        click.option("--biotype", help="Biotype of rows that name none."),
        click.option(
            "--statistic",
            type=click.Choice(["mean", "sum", "max"]),
            default="mean",
            show_default=True,
            help="Of the bases of a bin that have a value.",
        ),
        click.option("--clip", type=float, help="Soft clip: x above it becomes clip - 1 + sqrt(x - clip + 1)."),
        click.option("--scale", type=float, default=1.0, show_default=True, help="Factor, after the clip."),
        click.option("--log1p", is_flag=True, help="Natural logarithm of one plus the number, at the end."),
        click.option("--aliases", type=click.Path(path_type=Path), help="Two columns: another name, the store's name."),
        click.option("--workers", type=click.IntRange(min=1), help="Processes; one per core where there is much."),
        drop_option("bad_file"),
        STRICT,
        json_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _gaps(default: str) -> Kept:
    help_text = "What a base without a value is, on a chromosome that the file has."
    return click.option(
        "--gaps", type=click.Choice(["missing", "zero"]), default=default, show_default=True, help=help_text
    )


@import_.command(
    "tracks",
    examples=["tfbind import tracks yeast.store tracks/ --annotation experimentList.tab --name chip --statistic sum"],
)
@_binning
@_gaps("missing")
@click.option("--name", default="tracks", show_default=True, help="Of the array, tracks/NAME.")
def import_tracks(store: Path, path: Path, as_json: bool, **options: Any) -> None:
    """Import bigWigs as labels: one number per bin of the store's grid, NaN where nothing was measured.

    Files are named TRACK.bw, or by the table's column 'path'. A bigWig of another assembly is refused before anything
    is written. Stop it at any time: the same command goes on.
    """
    from tfbind_store import ingest
    from tfbind_store.store.folder import Store

    _print_report(ingest.import_tracks(Store.open(store), path, **options), as_json=as_json)


@import_.command(
    "signals",
    examples=["tfbind import signals yeast.store tracks/ --annotation signals.tsv --name atac --log1p"],
)
@_binning
@_gaps("zero")
@click.option("--name", default="signals", show_default=True, help="Of the array, signals/NAME.")
def import_signals(store: Path, path: Path, as_json: bool, **options: Any) -> None:
    """Import bigWigs of biotypes, such as ATAC or DNase, as inputs of a head: every row needs a biotype."""
    from tfbind_store import ingest
    from tfbind_store.store.folder import Store

    _print_report(ingest.import_signals(Store.open(store), path, **options), as_json=as_json)


@import_.command(
    "peak-tracks",
    examples=["tfbind import peak-tracks yeast.store --name merged --by factor_biotype"],
)
@STORE
@click.option("--name", default="peaks", show_default=True, help="Of the array, tracks/NAME.")
@click.option(
    "--by",
    type=click.Choice(["experiment", "factor_biotype"]),
    default="experiment",
    show_default=True,
    help="One track each, or the union over a factor's experiments in a biotype.",
)
@click.option(
    "--number",
    type=click.Choice(["bound", "covered", "score"]),
    default="bound",
    show_default=True,
    help="1 where a summit lies; the share of bases under a peak; the highest score.",
)
@click.option("--factor", help="Only this factor.")
@click.option("--biotype", help="Only this biotype.")
@json_option
def import_peak_tracks(store: Path, as_json: bool, **options: Any) -> None:
    """Make tracks of labels from peaks that were imported: no bigWig is needed to train on them."""
    from tfbind_store import ingest
    from tfbind_store.store.folder import Store

    _print_report(ingest.import_peak_tracks(Store.open(store), **options), as_json=as_json)
