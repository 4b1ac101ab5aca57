"""What makes two factors, or two biotypes, the same thing or nearly so.

Factors are kin by a *gene* (under any synonym, in any complex, with any modification), by an identical protein
*sequence*, as *paralogs* (protein identity over a threshold, ``similarity``), or by a *domain* that a table names.
Biotypes are kin as *treatments* of one base biotype, and by a *cell name* that differs in dots, hyphens, blanks or case
only (U2.OS, U2-OS, U2OS). Holding out follows genes, sequences, treatments and cell names by itself; of paralogs and
domains it is told (``family=SOX2``, ``domain=Homeodomain``), and ``leaks`` refuses what was forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeVar

from tfbind_store.errors import SelectionError
from tfbind_store.names import near_miss

Name = TypeVar("Name", bound=Hashable)


class FactorIdentity(NamedTuple):
    """What makes two factors the same thing."""

    genes: frozenset[str]
    """Symbols, synonyms resolved, in upper case."""
    sequences: frozenset[str]
    """sha256 of the subunits' sequences."""


class Paralogs(NamedTuple):
    """Proteins that are alike."""

    first: str
    """sha256 of a sequence, as the next."""
    second: str
    identity: float


def identities(
    subunits: Sequence[tuple[int, str, str, str | None]], synonyms: Mapping[str, str]
) -> dict[str, FactorIdentity]:
    """Return each factor's genes and sequences; `subunits` as ``reads.subunits`` gives them."""
    upper = {synonym.upper(): symbol.upper() for synonym, symbol in synonyms.items()}
    genes: dict[str, set[str]] = {}
    sequences: dict[str, set[str]] = {}
    for _, factor, gene, sha256 in subunits:
        genes.setdefault(factor, set()).add(upper.get(gene.upper(), gene.upper()))
        sequences.setdefault(factor, set()).update([sha256] if sha256 else [])
    return {factor: FactorIdentity(frozenset(genes[factor]), frozenset(sequences[factor])) for factor in genes}


def cell_name(base_biotype: str) -> str:
    """Return a cell's name without what spellings differ in.

    Examples
    --------
    >>> cell_name("U2.OS") == cell_name("u2-os") == cell_name("U2OS")
    True
    """
    return re.sub(r"[^0-9A-Z]+", "", base_biotype.upper()) or base_biotype


def components(names: Iterable[Name], marks: Mapping[Name, Collection[Hashable]]) -> dict[Name, int]:
    """Return a group number for every name; names that share a mark, directly or through others, share the group.

    Examples
    --------
    >>> components(["a", "b", "c"], {"a": [1], "b": [1, 2], "c": [3]})
    {'a': 0, 'b': 0, 'c': 1}
    """
    ordered = list(dict.fromkeys(names))
    parent = list(range(len(ordered)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    owner: dict[Hashable, int] = {}
    for place, name in enumerate(ordered):
        for mark in marks.get(name, ()):
            other = root(owner.setdefault(mark, place))
            mine = root(place)
            parent[max(mine, other)] = min(mine, other)
    numbers: dict[int, int] = {}
    return {name: numbers.setdefault(root(place), len(numbers)) for place, name in enumerate(ordered)}


@dataclass(frozen=True)
class Kinship:
    """Who is kin to whom among the factors of a catalog."""

    factors: Mapping[str, FactorIdentity]
    synonyms: Mapping[str, str] = field(default_factory=dict)
    """Symbol of each synonym, as the catalog spells them."""
    domains: Mapping[str, str] = field(default_factory=dict)
    """DNA-binding domain of each gene, where a table was imported."""
    find_paralogs: Callable[[Collection[str], Collection[str]], Sequence[Paralogs]] | None = None
    """Return the pairs of one of some sequences and one of some others; None where nobody asks."""
    find_families: Callable[[], Mapping[str, int]] | None = None
    """Return a number for every sequence, the same for those that chains of paralogs join."""

    @cached_property
    def upper(self) -> dict[str, str]:
        """Symbols of synonyms, all in upper case."""
        return {synonym.upper(): symbol.upper() for synonym, symbol in self.synonyms.items()}

    @cached_property
    def domains_of(self) -> dict[str, frozenset[str]]:
        """Domains of each factor, by its genes."""
        known = {self.upper.get(gene.upper(), gene.upper()): domain for gene, domain in self.domains.items()}
        return {
            factor: frozenset(known[gene] for gene in identity.genes if gene in known)
            for factor, identity in self.factors.items()
        }

    @cached_property
    def family_of(self) -> dict[str, frozenset[int]]:
        """Identity clusters of each factor's subunits: single linkage over pairs of paralogs."""
        cluster = self.find_families() if self.find_families else {}
        return {
            factor: frozenset(cluster[sha256] for sha256 in identity.sequences if sha256 in cluster)
            for factor, identity in self.factors.items()
        }

    def kin(self, kind: str, name: str, *, allow_leaks: Collection[str] = ()) -> set[str]:
        """Return every factor that goes where `name` goes.

        Parameters
        ----------
        kind
            factor, family or domain.
        name
            A factor, a gene or a synonym; a domain.
        allow_leaks
            Kinds of kinship not to follow: gene, sequence.

        Raises
        ------
        SelectionError
            If there is no such factor or domain.
        """
        if kind == "domain":
            return self._of_domain(name, allow_leaks)
        same, genes = self._named(name)
        wholly = [self.factors[factor] for factor in same if self.factors[factor].genes <= genes]
        sequences = {sha256 for identity in wholly for sha256 in identity.sequences}
        found = same | self._follow(genes, sequences, allow_leaks)
        return self._families_of(found, allow_leaks) if kind == "family" else found

    def _families_of(self, factors: Collection[str], allow_leaks: Collection[str]) -> set[str]:
        """Return some factors with all that paralogs, complexes and genes lead to, and from there again."""
        found, reached = set(factors), set[str]()
        others = {sha256 for identity in self.factors.values() for sha256 in identity.sequences}
        while new := {sha256 for factor in found for sha256 in self.factors[factor].sequences} - reached:
            others -= new
            reached |= new
            near = self._alike(new, others)
            members = {f for f, identity in self.factors.items() if not identity.sequences.isdisjoint(near)}
            found |= members | self._followed(found | members, allow_leaks)
        return found

    def _alike(self, sequences: Collection[str], others: Collection[str]) -> set[str]:
        pairs = self.find_paralogs(sequences, others) if self.find_paralogs else ()
        return {sha256 for pair in pairs for sha256 in pair[:2]}

    def groups(self, factors: Iterable[str], *, by_family: bool, allow_leaks: Collection[str] = ()) -> dict[str, int]:
        """Return a group number for every factor; kin share one, so that folds keep them together."""
        marks: dict[str, list[Hashable]] = {}
        for factor in factors:
            identity = self.factors.get(factor, FactorIdentity(frozenset({factor.upper()}), frozenset()))
            mine: list[Hashable] = [] if "gene" in allow_leaks else [("gene", gene) for gene in identity.genes]
            mine += [] if "sequence" in allow_leaks else [("sequence", sha256) for sha256 in identity.sequences]
            if by_family:
                mine += [("family", cluster) for cluster in self.family_of.get(factor, ())]
                mine += [("domain", domain) for domain in self.domains_of.get(factor, ())]
            marks[factor] = mine
        return components(marks, marks)

    def _named(self, name: str) -> tuple[set[str], frozenset[str]]:
        """Return the factors that a name means, and the genes that it stands for."""
        gene = self.upper.get(name.upper(), name.upper())
        exact = {factor for factor in self.factors if factor.upper() == name.upper()}
        same = exact or {factor for factor, identity in self.factors.items() if gene in identity.genes}
        if not same:
            fix = close_names(name, list(self.factors))
            raise SelectionError(f"no factor {name!r} to hold out", where="split.hold_out", fix=fix)
        genes = frozenset(g for factor in same for g in self.factors[factor].genes) if exact else frozenset({gene})
        return same, genes

    def _of_domain(self, name: str, allow_leaks: Collection[str]) -> set[str]:
        members = {factor for factor, mine in self.domains_of.items() if name.upper() in {d.upper() for d in mine}}
        if not members:
            known = sorted({domain for mine in self.domains_of.values() for domain in mine})
            fix = close_names(name, known) if known else "import a table of domains: tfbind import families STORE TABLE"
            raise SelectionError(f"no factor has the domain {name!r}", where="split.hold_out", fix=fix)
        return members | self._followed(members, allow_leaks)

    def _followed(self, members: Collection[str], allow_leaks: Collection[str]) -> set[str]:
        genes = frozenset(gene for factor in members for gene in self.factors[factor].genes)
        return self._follow(genes, {s for f in members for s in self.factors[f].sequences}, allow_leaks)

    def _follow(self, genes: Collection[str], sequences: Collection[str], allow_leaks: Collection[str]) -> set[str]:
        found: set[str] = set()
        if "gene" not in allow_leaks:
            found |= {factor for factor, identity in self.factors.items() if not identity.genes.isdisjoint(genes)}
        if "sequence" not in allow_leaks:
            found |= {f for f, identity in self.factors.items() if not identity.sequences.isdisjoint(sequences)}
        return found


def close_names(name: str, known: Sequence[str]) -> str:
    """Return a fix for a name that is not known."""
    close = near_miss(name, known)
    return f"did you mean {close}?" if close else f"known: {', '.join(list(known)[:12])}"
