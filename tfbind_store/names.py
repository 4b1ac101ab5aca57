"""Parse names: experiments, factors, complexes, modifications, biotypes, chromosomes, and names that become paths.

An experiment is named as ReMap does: ``ACCESSION.FACTOR.BIOTYPE[_treatment]``. A factor's name is held against the
known gene symbols first and is cut only where the pieces are known too, because hyphens are part of many symbols
(NKX3-1, HLA-A). Nothing here reads a file or knows a catalog; ``factors`` reads the symbols and synonyms.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import NamedTuple

from tfbind_store.errors import NameParseError

DEFAULT_SYNONYMS: Mapping[str, str] = {"RXR": "RXRA"}
"""Names of a family that catalogs use for one member; a caller's synonyms come before these."""

EPITOPE_TAGS = frozenset({"eGFP", "EGFP", "GFP", "mCherry", "FLAG", "3xFLAG", "V5", "HA", "3xHA", "HaloTag"})
"""What ENCODE writes before the gene of a tagged construct (eGFP-ZNF580)."""

CELLULAR = frozenset({"c", "C"})
"""What older catalogs write before a proto-oncogene, to tell it from the virus's own (c-Myc, c-Jun)."""

PATH_SAFE = re.compile(r"(?!(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|\Z))[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names that may become part of a path; device names of Windows are left out."""

MAX_PARTS = 12
"""A factor's name with more hyphens than this is taken whole."""

_DONE_TO_CELLS = (
    r"(?:[A-Z][A-Z0-9-]+ )?(?:[dD]?KO|KD|(?i:knock-?(?:out|down|in)))\b|WT\b|CRISPR|s[ih][A-Z]"
    r"|(?i:(?:un)?treated|stimulated|infected|transfected|transduced|starved|depleted|exposed"
    r"|(?:genetically|stably|over-?)? ?(?:modified|expressing)|with|without|after|plus)\b"
)
_TREATED = re.compile(
    rf"_|\s*\+\s*(?=[^\W_])|\s+\((?!\d+ (?:year|month|week|day))(?=[^()]+\)\Z)"
    rf"|,?\s+(?:(?i:treated with)\s+|(?={_DONE_TO_CELLS}))"
)
"""Where a biotype's name ends and what was done to the cells begins."""
_MARKER = re.compile(r"\bCD\d+\w?\Z")
_SEPARATOR = re.compile(r"(::|-|/)")
_SPECIES = re.compile(r"-(?:human|mouse)\Z")
_TARGET = re.compile(r"/targets/(?P<name>.+?)(?:-[A-Z]?[a-z]+)?/")
_PHOSPHO = re.compile(r"(?P<gene>.+?)(?P<modification>phospho[STY]\d+)")
_ROMAN = re.compile(r"(?=[IVXLC])(C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})")
_ROMAN_STEPS = ((100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))
_MITOCHONDRION = ("M", "MT", "Mt", "mt", "Mito", "mito")
_PREFIXES = ("", "chr", "Chr", "CHR")


class ParsedFactor(NamedTuple):
    """The genes of a factor's name, and what was done to the protein."""

    genes: tuple[str, ...]
    modification: str | None

    @property
    def factor(self) -> str:
        """The factor's own name: its genes joined by a hyphen, without the modification."""
        return "-".join(self.genes)


class ParsedName(NamedTuple):
    """An experiment's name, taken apart once."""

    raw: str
    accession: str
    factor: str
    """The middle field, verbatim."""
    genes: tuple[str, ...]
    modification: str | None
    biotype: str
    """The rest, verbatim: dots and treatment kept."""
    base_biotype: str
    treatment: str | None


def parse_experiment_name(
    raw: str, *, known_symbols: Container[str] = (), synonyms: Mapping[str, str] | None = None
) -> ParsedName:
    """Take an experiment's name apart.

    The accession ends at the first dot, the factor at the next; the biotype is all the rest, for cell types hold dots
    (``U2.OS``). A factor may hold dots too (``H2A.Z``), but only where the symbols say so.

    Raises
    ------
    NameParseError
        If there are fewer than three fields, or one is empty.

    Examples
    --------
    >>> parse_experiment_name("GSE1.SOX2_K4ac.U2.OS_dex")[1:]
    ('GSE1', 'SOX2_K4ac', ('SOX2',), 'K4ac', 'U2.OS_dex', 'U2.OS', 'dex')
    """
    fields = raw.split(".")
    if len(fields) < 3 or not all(field.strip() for field in fields[:3]) or raw != raw.strip():
        raise NameParseError(
            f"experiment name {raw!r} is not ACCESSION.FACTOR.BIOTYPE",
            fix="put three fields with dots between them in column 4, or import one BED per experiment",
        )
    n_fields = _factor_fields(fields, known_symbols, synonyms)
    factor, biotype = ".".join(fields[1 : 1 + n_fields]), ".".join(fields[1 + n_fields :])
    genes, modification = parse_factor_name(factor, known_symbols=known_symbols, synonyms=synonyms)
    base, treatment = split_treatment(biotype)
    return ParsedName(raw, fields[0], factor, genes, modification, biotype, base, treatment)


def _factor_fields(fields: Sequence[str], known: Container[str], synonyms: Mapping[str, str] | None) -> int:
    if _all_known(fields[1], known, synonyms) is None:
        for n_fields in range(min(3, len(fields) - 2), 1, -1):
            if _all_known(".".join(fields[1 : 1 + n_fields]), known, synonyms) is not None:
                return n_fields
    return 1


def split_treatment(biotype: str) -> tuple[str, str | None]:
    """Split a biotype into cell type and treatment, or what else was done to the cells.

    ReMap writes an underscore, others a plus, parentheses at the end, or words. The plus of a surface marker
    (``CD34+``) and an age are part of the cell's name. A hyphen is too: nobody can tell ``MCF-7-E2`` from a cell line.

    Examples
    --------
    >>> split_treatment("MCF-7_E2"), split_treatment("Hep-G2")
    (('MCF-7', 'E2'), ('Hep-G2', None))
    >>> split_treatment("HepG2 (FOXA1 KO)"), split_treatment("K562 treated with IFNg")
    (('HepG2', 'FOXA1 KO'), ('K562', 'IFNg'))
    """
    for found in _TREATED.finditer(biotype):
        base, treatment = biotype[: found.start()], biotype[found.end() :]
        if base and treatment and not ("+" in found[0] and _MARKER.search(base)):
            return base, treatment.removesuffix(")") if "(" in found[0] else treatment
    return biotype, None


def parse_factor_name(
    name: str, *, known_symbols: Container[str] = (), synonyms: Mapping[str, str] | None = None
) -> ParsedFactor:
    """Return the genes that a factor's name stands for.

    Tried in this order, and the first that fits wins: the whole name is a known symbol or synonym; a modification
    follows an underscore (``SOX2_K4ac``) or as ENCODE writes it (``POLR2AphosphoS5``); all pieces between hyphens
    are known, longest pieces first, where a short piece may stand for an end of the symbol before it (``SMAD2-3``),
    after an epitope tag or the c of c-Jun or not, before a species or not (``CTCF-human``,
    ``/targets/CTCF-human/``, as ENCODE does). A complex with an unknown member keeps all its members, the unknown
    one too, so that nobody takes it for its known part. A name of which nothing is known stays whole.

    Parameters
    ----------
    name
        Factor as given, for example ``PAX3-FOXO1``.
    known_symbols
        Gene symbols that have a protein.
    synonyms
        Other names of these symbols; `DEFAULT_SYNONYMS` are tried after them.

    Raises
    ------
    NameParseError
        If the name is empty.

    Examples
    --------
    >>> parse_factor_name("PAX3-FOXO1_K4ac", known_symbols={"PAX3", "FOXO1"})
    ParsedFactor(genes=('PAX3', 'FOXO1'), modification='K4ac')
    >>> parse_factor_name("NKX3-1", known_symbols={"NKX3-1"}).genes
    ('NKX3-1',)
    """
    if not name.strip():
        raise NameParseError("a factor's name is empty")
    if target := _TARGET.fullmatch(name):
        name = target["name"]
    candidates = list(_modification_cuts(name))
    without_species = _SPECIES.sub("", name)
    for stem, modification in (*candidates, *_modification_cuts(without_species)):
        genes = _all_known(stem, known_symbols, synonyms)
        if genes is not None:
            return ParsedFactor(genes, modification)
    stem, modification = candidates[-1] if "_" in name.strip("_") else (name, None)
    return ParsedFactor(_partly_known(stem, known_symbols, synonyms), modification)


def _modification_cuts(name: str) -> Iterable[tuple[str, str | None]]:
    """Every way to see a modification in a name: none, ENCODE's phospho, then at underscores from the right."""
    yield name, None
    phospho = _PHOSPHO.fullmatch(name)
    if phospho:
        yield phospho["gene"], phospho["modification"]
    place = name.rfind("_")
    while place > 0:
        if name[place + 1 :]:
            yield name[:place], name[place + 1 :]
        place = name.rfind("_", 0, place)


def _known_symbol(name: str, known: Container[str], synonyms: Mapping[str, str] | None) -> str | None:
    """Return the symbol that one name stands for, trying its own spelling before other cases."""
    spellings = tuple(dict.fromkeys((name, name.upper(), name.capitalize())))
    for spelling in spellings:
        if spelling in known:
            return spelling
    for spelling in spellings:
        for table in (synonyms or {}, DEFAULT_SYNONYMS):
            if spelling in table:
                symbol = table[spelling]
                return next((s for s in (symbol, symbol.upper(), symbol.capitalize()) if s in known), symbol)
    return None


def _all_known(name: str, known: Container[str], synonyms: Mapping[str, str] | None) -> tuple[str, ...] | None:
    """Return the genes of `name` if every piece of it is known, else None."""
    whole = _known_symbol(name, known, synonyms)
    if whole is not None:
        return (whole,)
    pieces = _SEPARATOR.split(name)
    if len(pieces) == 1 or len(pieces) > 2 * MAX_PARTS or not all(pieces):
        return None
    found = _cover(pieces, 0, (), known, synonyms)
    if found is None and pieces[0] in EPITOPE_TAGS | CELLULAR:
        found = _cover(pieces, 2, (), known, synonyms)
    return found


def _cover(
    pieces: Sequence[str],
    start: int,
    genes: tuple[str, ...],
    known: Container[str],
    synonyms: Mapping[str, str] | None,
) -> tuple[str, ...] | None:
    """Cover pieces[start:] by known symbols, longest first; pieces alternate between words and separators."""
    if start >= len(pieces):
        return genes or None
    for end in range(len(pieces), start, -2):
        symbol = _known_symbol("".join(pieces[start:end]), known, synonyms)
        if symbol is None and end == start + 1 and genes:
            symbol = _short_for(pieces[start], genes[-1], known)
        if symbol is not None:
            rest = _cover(pieces, end + 1, (*genes, symbol), known, synonyms)
            if rest is not None:
                return rest
    return None


def _short_for(piece: str, before: str, known: Container[str]) -> str | None:
    """Return what `piece` means after the symbol `before`, if known: 3 after SMAD2 is SMAD3, 5B after STAT5A STAT5B."""
    if len(piece) >= len(before):
        return None
    symbol = before[: -len(piece)] + piece
    return symbol if symbol in known else None


def _partly_known(name: str, known: Container[str], synonyms: Mapping[str, str] | None) -> tuple[str, ...]:
    """Split `name` only where a known symbol stands; neighbouring unknown pieces stay together."""
    pieces = _SEPARATOR.split(name)
    if len(pieces) == 1 or len(pieces) > 2 * MAX_PARTS or not all(pieces):
        return (name,)
    if pieces[0] in EPITOPE_TAGS and pieces[0] not in known and len(pieces) > 2:
        return _partly_known("".join(pieces[2:]), known, synonyms)
    genes: list[str] = []
    unknown: list[str] = []
    start = 0
    while start < len(pieces):
        ends = range(len(pieces), start, -2)
        hits = ((end, _known_symbol("".join(pieces[start:end]), known, synonyms)) for end in ends)
        end, symbol = next(((end, symbol) for end, symbol in hits if symbol is not None), (start + 1, None))
        if symbol is None and genes and not unknown:
            symbol = _short_for(pieces[start], genes[-1], known)
        if symbol is None and len(unknown) == 1 and pieces[start].isdigit() and unknown[0][-1:].isdigit():
            symbol = _short_for(pieces[start], unknown[0], known)  # SMAD2-3 where only SMAD3 has a protein
        if symbol is None:
            unknown += pieces[max(start - 1, 0) if unknown else start : end]
        else:
            genes += ["".join(unknown)] if unknown else []
            genes.append(symbol)
            unknown = []
        start = end + 1
    tail = "".join(unknown)
    if tail and not genes:
        return (name,)
    if tail.isdigit() and not genes[-1][-1].isdigit():
        return (name,)
    if tail.isdigit():
        tail = genes[-1][: -len(tail)] + tail
    return (*genes, tail) if tail else tuple(genes)


def near_miss(name: str, known: Collection[str]) -> str | None:
    """Return the known name most like `name`, if any is close; dots, blanks and case count little.

    Examples
    --------
    >>> near_miss("NKX3.1", ["NKX3-1", "SOX2"])
    'NKX3-1'
    """
    plain = {_plain(item): item for item in sorted(known, reverse=True)}
    close = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.75)
    return plain[close[0]] if close else None


def _plain(name: str) -> str:
    return re.sub(r"[\s._]+", "-", name).upper()


def path_safe_name(name: str, *, what: str = "name") -> str:
    """Return `name` if it may become part of a path inside the store.

    Raises
    ------
    NameParseError
        If it is anything but 1 to 64 ASCII letters, digits, dots, underscores and hyphens, a letter or digit first.
    """
    if not PATH_SAFE.fullmatch(name):
        raise NameParseError(
            f"{what} {name[:80]!r} cannot become a path",
            fix="use 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit",
        )
    return name


def roman_number(text: str) -> int | None:
    """Return the value of a Roman number up to 399, or None.

    Examples
    --------
    >>> roman_number("XVI"), roman_number("IIX")
    (16, None)
    """
    match = _ROMAN.fullmatch(text)
    if not match:
        return None
    values = {letters: value for value, letters in _ROMAN_STEPS}
    total, place = 0, 0
    while place < len(text):
        letters = text[place : place + 2] if text[place : place + 2] in values else text[place]
        total += values[letters]
        place += len(letters)
    return total


def to_roman(number: int) -> str:
    """Return a number from 1 to 399 in Roman letters."""
    letters = ""
    for value, step in _ROMAN_STEPS:
        letters += step * (number // value)
        number %= value
    return letters


def chromosome_aliases(chroms: Sequence[str]) -> dict[str, str]:
    """Return every accepted other name of each chromosome: ``{alias: the genome's own name}``.

    With and without ``chr``; ``M MT Mito`` for the mitochondrion; Roman and Arabic numbers for each other where the
    genome is numbered that way. A lone X among Roman numbers is a sex chromosome unless IX, XI or beyond is there too,
    and no Arabic genome takes ``X`` for its tenth: peaks on a sex chromosome that was left out must not land on chr10.
    An alias that would fit two chromosomes is left out.

    Examples
    --------
    >>> aliases = chromosome_aliases(["chrI", "chrII"])
    >>> aliases["chr2"], aliases["II"], aliases["2"]
    ('chrII', 'chrII', 'chrII')
    """
    cores = {chrom: _core(chrom) for chrom in chroms}
    numbers = _numbers(cores)
    found: dict[str, set[str]] = {}
    for chrom, core in cores.items():
        words = {core}
        if core in _MITOCHONDRION:
            words |= set(_MITOCHONDRION)
        if chrom in numbers:
            words |= _number_words(numbers[chrom], roman_too=core != str(numbers[chrom]) or not core.isdigit())
            words |= _roman_words_of_arabic(core, numbers, set(cores.values()))
        for word in words:
            for prefix in _PREFIXES:
                found.setdefault(prefix + word, set()).add(chrom)
    own = set(chroms)
    aliases = {alias: next(iter(names)) for alias, names in found.items() if len(names) == 1 and alias not in own}
    return dict(sorted(aliases.items()))


def _core(chrom: str) -> str:
    return chrom[3:] if chrom[:3].lower() == "chr" and len(chrom) > 3 else chrom


def _numbers(cores: Mapping[str, str]) -> dict[str, int]:
    """Return the number of each numbered chromosome, in a genome that is Arabic or Roman throughout."""
    plain = {chrom: core for chrom, core in cores.items() if core not in _MITOCHONDRION}
    arabic = {chrom: int(core) for chrom, core in plain.items() if re.fullmatch(r"0*[1-9][0-9]{0,2}", core)}
    if arabic:
        return arabic
    roman = {chrom: number for chrom, core in plain.items() if (number := roman_number(core)) is not None}
    tens = set(roman.values()) - {10}
    if not tens:
        return {}
    if max(tens) < 9:
        return {chrom: number for chrom, number in roman.items() if number != 10}
    return roman


def _number_words(number: int, *, roman_too: bool) -> set[str]:
    words = {str(number), f"{number:02d}"}
    return words | {to_roman(number)} if roman_too else words


def _roman_words_of_arabic(core: str, numbers: Mapping[str, int], cores: set[str]) -> set[str]:
    """Roman names for an Arabic genome numbered 1..n without a gap and without sex chromosomes; never the lone X."""
    gapless = len(numbers) > 1 and sorted(numbers.values()) == list(range(1, len(numbers) + 1))
    if not core.isdigit() or not gapless or cores & set("XYZW"):
        return set()
    return {to_roman(int(core))} - {"X"}
