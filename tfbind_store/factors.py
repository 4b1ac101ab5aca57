"""Proteins of factors: read FASTA files and synonym tables, choose one protein per gene, compare sequences.

Sequences are one letter a residue, upper case. Lower case is raised, gaps (``-`` and ``.``) and one final stop (``*``)
are taken off; the 20 amino acids and ``B J O U X Z`` may stand; anything else is refused. Nothing here knows which
factors a store has.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from tfbind_store.errors import InputFileError, ProteinError
from tfbind_store.textfiles import find_column, read_lines, read_table

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
RESIDUES = frozenset(AMINO_ACIDS + "BJOUXZ")
SPECIES_PRIORITY = ("human", "mouse", "unknown")
KMER = 3
MAX_DNA_FRACTION = 0.9
"""More of A, C, G, T, U, N than this is no protein; real proteins have about a third."""
MIN_LETTERS_TO_JUDGE = 50
LONGEST_SYMBOL = 128
MAX_RESIDUES = 100_000
"""No protein is as long (titin has 34,350): such a record is a genome, or a file made to fill the memory."""
FASTA_SUFFIXES = (".fasta", ".fa", ".faa")

_RAISED = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)
_UNIPROT = re.compile(r"(?P<db>sp|tr)\|(?P<accession>[^|\s]+)\|(?P<entry>\S+)")
_GENE = re.compile(r"(?:^|[\s\[])(?:GN|gene|gene_symbol|gene_name)[=:](?P<gene>[^\s\]]+)")
_LOCUS = re.compile(r"(?:^|[\s\[])(?:locus_tag|sgd)[=:](?P<locus>[^\s\]]+)")
_PROTEIN_ID = re.compile(r"(?:^|[\s\[])protein_id[=:](?P<id>[^\s\]]+)")
_ORGANISM = re.compile(r"\bOX=(?P<taxon>\d+)|\[(?:organism=)?(?P<name>[A-Z][a-z]+ [a-z]+)[^\]]*\]")
_ISOFORM = re.compile(r"-(?P<number>\d+)$")
_SPECIES = {"9606": "human", "10090": "mouse", "Homo sapiens": "human", "Mus musculus": "mouse"}


class Protein(NamedTuple):
    """One protein, as its file has it."""

    symbol: str
    accession: str
    species: str
    reviewed: bool
    sequence: str
    other_names: tuple[str, ...]
    """Further names of the gene that the header gives."""
    chosen_by: str = ""
    """The rule that chose it among its gene's entries."""

    @property
    def sha256(self) -> str:
        """Of the sequence."""
        return hashlib.sha256(self.sequence.encode("ascii")).hexdigest()


class ProteinTable(NamedTuple):
    """One protein per gene, and what became of the rest."""

    chosen: tuple[Protein, ...]
    """Sorted by symbol."""
    n_read: int
    dropped: dict[str, int]
    """Entries left out, by cause."""
    synonyms: tuple[tuple[str, str], ...]
    """(synonym, symbol) as found in headers."""
    notes: tuple[str, ...]


def read_proteins(
    path: Path | str, *, species_priority: Sequence[str] = SPECIES_PRIORITY, drop_bad: bool = False
) -> ProteinTable:
    """Read a multi-FASTA, or a folder of ``{GENE}.{UNIPROT}.fasta`` with its subfolders.

    The gene is a header's ``GN=`` (UniProt) or ``gene=``, in a folder the file name up to the last dot but one, else
    the header's first word. Of several entries of one gene (letter case aside) one is chosen, by the first of these
    that tells them apart: species in the order of `species_priority`, reviewed (Swiss-Prot) before unreviewed,
    canonical before isoforms, longest, then accession in alphabetical order.

    Parameters
    ----------
    path
        FASTA or folder; .gz too.
    species_priority
        Species as ``human``, ``mouse``, ``unknown`` or a UniProt mnemonic in lower case (``yeast``); others come last.
    drop_bad
        Leave out entries whose sequence is empty or holds foreign letters, instead of refusing the file.

    Raises
    ------
    ProteinError
        If the file is no FASTA, or holds a bad sequence: with gene, letter and position.
    """
    path = Path(path)
    files = protein_files(path)
    by_gene: dict[str, list[Protein]] = defaultdict(list)
    dropped: dict[str, int] = {}
    n_read = n_unnamed = 0
    for file in files:
        for line, header, text in read_fasta(file):
            n_read += 1
            entry, named = _entry(header, text, file, in_folder=path.is_dir())
            n_unnamed += not named
            reason = bad_sequence(entry.sequence)
            if reason and not drop_bad:
                raise ProteinError(f"{entry.symbol}: {reason}", where=f"{file}:{line}", fix="correct or remove it")
            if reason:
                dropped["bad_sequence"] = dropped.get("bad_sequence", 0) + 1
                continue
            by_gene[entry.symbol.upper()].append(entry)
    _refuse_dna(path, by_gene.values())
    chosen = sorted(_choose(entries, species_priority) for entries in by_gene.values())
    n_others = sum(len(entries) - 1 for entries in by_gene.values())
    if n_others:
        dropped["another_entry_of_the_gene"] = n_others
    notes = [f"{n_unnamed} entries name no gene: the first word of the header stands for it"] if n_unnamed else []
    return ProteinTable(tuple(chosen), n_read, dropped, tuple(_header_synonyms(chosen)), tuple(notes))


def protein_files(path: Path) -> list[Path]:
    """Return the FASTA files that `path` means, sorted."""
    if not path.is_dir():
        return [path]
    names = (suffix + packed for suffix in FASTA_SUFFIXES for packed in ("", ".gz"))
    files = sorted(file for name in names for file in path.rglob(f"*{name}") if file.is_file())
    if not files:
        raise ProteinError("no FASTA files in this folder", where=str(path), fix="name them {GENE}.{UNIPROT}.fasta")
    return files


def read_fasta(path: Path | str) -> Iterator[tuple[int, str, str]]:
    """Yield line number, header without ``>`` and sequence as written, of each record."""
    header: str | None = None
    start, parts, length = 0, list[str](), 0
    for number, line in read_lines(path, error_class=ProteinError):
        if line.startswith(">"):
            if header is not None:
                yield start, header, "".join(parts)
            header, start, parts, length = line[1:].strip(), number, [], 0
        elif line.strip() and not line.startswith(";"):
            if header is None:
                raise ProteinError("not a FASTA file: it does not begin with '>'", where=f"{path}:{number}")
            parts.append(line.strip())
            length += len(line)
            if length > MAX_RESIDUES:
                what = f"a record of more than {MAX_RESIDUES:,} letters is no protein"
                raise ProteinError(what, where=f"{path}:{start}", fix="give the proteins' FASTA, not a genome's")
    if header is None:
        raise ProteinError("no sequence in this file", where=str(path))
    yield start, header, "".join(parts)


def clean_sequence(text: str) -> str:
    """Return a sequence by the rule at the top of this module; foreign letters are kept for `read_proteins` to refuse.

    Examples
    --------
    >>> clean_sequence("mk-vL*")
    'MKVL'
    """
    # str.upper() would make amino acids of other alphabets' letters: S and S of a sharp s, I of a dotless i
    return re.sub(r"[\s.-]", "", text).translate(_RAISED).removesuffix("*")


def bad_sequence(sequence: str) -> str | None:
    """Return what is wrong with a cleaned sequence, with letter and position; None if nothing is.

    Examples
    --------
    >>> bad_sequence("MK1")
    "letter '1' at residue 3 is no amino acid"
    """
    if not sequence:
        return "the sequence is empty"
    for place, letter in enumerate(sequence, 1):
        if letter not in RESIDUES:
            return f"letter {letter!r} at residue {place} is no amino acid"
    return None


def _refuse_dna(path: Path, genes: Iterable[Sequence[Protein]]) -> None:
    """Refuse a file that holds next to nothing but A, C, G, T, U and N: all of them are amino acids too."""
    letters = Counter[str]()
    for entries in genes:
        for entry in entries:
            letters.update(entry.sequence)
    total = letters.total()
    if total >= MIN_LETTERS_TO_JUDGE and sum(letters[base] for base in "ACGTUN") > MAX_DNA_FRACTION * total:
        raise ProteinError("the sequences are DNA or RNA", where=str(path), fix="give the proteins' FASTA")


def _entry(header: str, text: str, file: Path, *, in_folder: bool) -> tuple[Protein, bool]:
    """Return a record as a protein, and whether its gene was named rather than guessed."""
    words = header.split()
    first = words[0] if words else file.stem
    uniprot = _UNIPROT.match(header)
    gene = _GENE.search(header)
    stem = file.name.removesuffix(".gz").rpartition(".")[0]
    file_gene, _, file_entry = stem.rpartition(".")
    accession = uniprot["accession"] if uniprot else (m["id"] if (m := _PROTEIN_ID.search(header)) else first)
    if in_folder and file_gene:
        symbol, named = file_gene, True
    elif gene:
        symbol, named = gene["gene"], True
    else:
        symbol, named = (uniprot["entry"].partition("_")[0] if uniprot else first), False
    if len(symbol) > LONGEST_SYMBOL or not symbol.isprintable():
        what = f"{symbol[:30]!a} of {len(symbol):,} characters is no gene's symbol"
        raise ProteinError(what, where=str(file), fix="write GN=SYMBOL in the record's header")
    names = [accession] if uniprot else [first, *(m["locus"] for m in _LOCUS.finditer(header)), accession]
    names += [gene["gene"]] if gene else []
    entry_name = uniprot["entry"] if uniprot else file_entry if in_folder else ""
    return (
        Protein(
            symbol=symbol,
            accession=accession,
            species=_species(header, entry_name),
            reviewed=bool(uniprot and uniprot["db"] == "sp"),
            sequence=clean_sequence(text),
            other_names=tuple(dict.fromkeys(name for name in names if name != symbol)),
        ),
        named,
    )


def _species(header: str, entry_name: str) -> str:
    organism = _ORGANISM.search(header)
    known = _SPECIES.get(organism["taxon"] or organism["name"]) if organism else None
    if known:
        return known
    _, underscore, mnemonic = entry_name.rpartition("_")
    return mnemonic.lower() if underscore and mnemonic else "unknown"


def _choose(entries: Sequence[Protein], species_priority: Sequence[str]) -> Protein:
    """Return one entry with the rule that chose it."""
    ranks = {species: rank for rank, species in enumerate(species_priority)}
    rules: tuple[tuple[str, Callable[[Protein], Any]], ...] = (
        ("species", lambda e: ranks.get(e.species, len(ranks))),
        ("reviewed", lambda e: not e.reviewed),
        ("canonical", lambda e: int(m["number"]) if (m := _ISOFORM.search(e.accession)) else 0),
        ("longest", lambda e: -len(e.sequence)),
        ("accession", lambda e: (e.accession, e.symbol, e.sequence)),
    )
    left, decided = list(entries), "only entry"
    for rule, key in rules:
        best = min(map(key, left))
        fewer = [entry for entry in left if key(entry) == best]
        if len(fewer) < len(left):
            left, decided = fewer, rule
    return left[0]._replace(chosen_by=decided)


def _header_synonyms(chosen: Iterable[Protein]) -> Iterator[tuple[str, str]]:
    for protein in chosen:
        for name in protein.other_names:
            yield name, protein.symbol


def read_synonyms(path: Path | str, *, known_symbols: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Read (synonym, symbol) pairs.

    Accepts SGD's ``SGD_features.tab`` (no header), a table with columns such as HGNC's ``symbol``, ``alias_symbol``,
    ``prev_symbol``, or two columns ``synonym`` and ``symbol`` without a header. Many names in a cell are separated by
    ``|``. Where one of a gene's names is among `known_symbols`, that one is its symbol, whatever the file prefers.

    Raises
    ------
    InputFileError
        If the file is none of these.
    """
    known = set(known_symbols)
    pairs: set[tuple[str, str]] = set()
    for names in _gene_names(Path(path)):
        symbol = next((name for name in names if name in known), names[0])
        pairs |= {(name, symbol) for name in names if name != symbol}
    return sorted(pairs)


def _gene_names(path: Path) -> Iterator[list[str]]:
    """Yield the names of each gene, the preferred one first."""
    lines = [(number, line.split("\t")) for number, line in read_lines(path) if line.strip()]
    if not lines:
        raise InputFileError("the synonym table is empty", where=str(path))
    first = lines[0][1]
    if len(first) >= 6 and re.fullmatch(r"[SL]\d{9}", first[0]):
        for _, row in lines:
            names = [row[4], *row[3:4], *row[5].split("|")] if len(row) > 5 and row[3] else []
            if ordered := [name for name in dict.fromkeys(names) if name]:
                yield ordered
    elif "symbol" in (cell.strip().lower().lstrip("#") for cell in first):
        yield from _table_names(path)
    elif all(len(row) == 2 for _, row in lines):
        yield from ([row[1].strip(), row[0].strip()] for _, row in lines)
    else:
        raise InputFileError(
            "not a synonym table",
            where=f"{path}:1",
            fix="give SGD_features.tab, a TSV with columns symbol and alias_symbol, or two columns synonym and symbol",
        )


def _table_names(path: Path) -> Iterator[list[str]]:
    table = read_table(path)
    symbol = find_column(table, "symbol")
    others = [
        column
        for word in ("alias_symbol", "prev_symbol", "synonym", "synonyms", "alias", "aliases")
        if (column := find_column(table, word)) is not None
    ]
    for row in table.rows:
        cells = [row.cells.get(column, "") for column in (symbol or "", *others)]
        names = [name.strip().strip('"') for cell in cells for name in re.split(r"[|]", cell)]
        if ordered := [name for name in dict.fromkeys(names) if name]:
            yield ordered


def unambiguous(pairs: Iterable[tuple[str, str]], known_symbols: Iterable[str] = ()) -> dict[str, str]:
    """Return ``{synonym: symbol}`` without synonyms that two genes share or that are a gene's own symbol."""
    found: dict[str, set[str]] = defaultdict(set)
    for synonym, symbol in pairs:
        found[synonym].add(symbol)
    own = set(known_symbols)
    return {name: next(iter(symbols)) for name, symbols in found.items() if len(symbols) == 1 and name not in own}


def kmer_similarity(a: Sequence[str], b: Sequence[str], *, k: int = KMER) -> Float32[np.ndarray, "a b"]:
    """Return how alike proteins are: the cosine of their k-mer counts' square roots, 0 to 1.

    No alignment: k-mers that both hold count, rare repeats do not drown the rest (square root). Residues other than the
    20 amino acids belong to no k-mer. A protein shorter than `k` is like nothing.

    Examples
    --------
    >>> kmer_similarity(["MKVLA"], ["MKVLA", "WWWWW"]).round(3).tolist()
    [[1.0, 0.0]]
    """
    alike: Float32[np.ndarray, "a b"] = _profiles(a, k) @ _profiles(b, k).T
    return alike


def _profiles(sequences: Sequence[str], k: int) -> Float32[np.ndarray, "n kmers"]:
    code = np.full(256, -1, dtype=np.int64)
    for place, letter in enumerate(AMINO_ACIDS):
        code[ord(letter)] = place
    out = np.zeros((len(sequences), len(AMINO_ACIDS) ** k), dtype=np.float32)
    for row, sequence in enumerate(sequences):
        letters = code[np.frombuffer(sequence.encode("ascii"), dtype=np.uint8)]
        if letters.size >= k:
            windows = np.lib.stride_tricks.sliding_window_view(letters, k)
            whole = windows[(windows >= 0).all(axis=1)]
            kmers = whole @ (len(AMINO_ACIDS) ** np.arange(k))
            np.add.at(out[row], kmers, 1.0)
    np.sqrt(out, out=out)
    norms = np.linalg.norm(out, axis=1, keepdims=True)
    np.divide(out, norms, out=out, where=norms > 0)
    return out


def clusters(sequences: Sequence[str], threshold: float, *, k: int = KMER) -> Int64[np.ndarray, " n"]:
    """Group proteins by single linkage: two are together if a chain of pairs with `kmer_similarity` >= `threshold` is.

    Labels count from 0 in the order in which clusters first appear. Single linkage errs towards too large groups, which
    is the safe side when a group must not stand on both sides of a split.
    """
    alike = kmer_similarity(sequences, sequences, k=k) >= threshold
    labels = np.full(len(sequences), -1, dtype=np.int64)
    for first in range(len(sequences)):
        if labels[first] >= 0:
            continue
        label = int(labels.max(initial=-1)) + 1
        reached = np.zeros(len(sequences), dtype=bool)
        reached[first] = True
        edge = reached
        while edge.any():
            edge = alike[edge].any(axis=0) & ~reached
            reached = reached | edge
        labels[reached] = label
    return labels
