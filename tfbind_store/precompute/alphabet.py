"""The one rule by which every protein encoder reads a sequence, whatever its own alphabet.

White space, gaps (``-`` and ``.``) and one final stop (``*``) are taken off and lower case is raised, as on import. The
20 amino acids and ``B J O U X Z`` may stand; anything else is refused with letter and position. What an encoder does
not know it reads as follows, and its spec says so:

======== ====================== ===================== =====================
letter   esm                    protalbert            composition
======== ====================== ===================== =====================
U        its own token          X                     C
O        its own token          X                     K
B, Z     their own tokens       X                     the background
J        X                      X                     the background
X        its own token          its own token         the background
======== ====================== ===================== =====================

From Python, a sequence may also be integers: 0 to 19 are ``ACDEFGHIKLMNPQRSTVWY``, 20 is padding and dropped anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfbind_store.errors import ProteinError
from tfbind_store.factors import AMINO_ACIDS, bad_sequence, clean_sequence

PADDING = len(AMINO_ACIDS)
SHOWN_LETTERS = 30
_LETTERS = np.frombuffer(AMINO_ACIDS.encode("ascii"), dtype=np.uint8)


def residues(sequence: str | Sequence[int] | np.ndarray) -> str:
    """Return a sequence as upper-case letters by the rule above.

    Raises
    ------
    ProteinError
        If nothing is left, or a letter or number is no amino acid.

    Examples
    --------
    >>> residues("mk-vL*"), residues([10, 8, 20, 17])
    ('MKVL', 'MKV')
    """
    letters = clean_sequence(sequence) if isinstance(sequence, str) else _from_numbers(sequence)
    reason = bad_sequence(letters)
    if reason:
        raise ProteinError(reason, where=f"{letters[:SHOWN_LETTERS]}…", fix="give one-letter codes of amino acids")
    return letters


def require_list(sequences: object) -> None:
    """Refuse one bare string where a list of them is meant: its letters would become proteins."""
    if isinstance(sequences, str | bytes):
        raise ProteinError("one string where a list of sequences is meant", fix="write [sequence]")


def _from_numbers(sequence: Sequence[int] | np.ndarray) -> str:
    numbers = np.asarray(sequence)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        what = f"a sequence is text or one row of integers, not {numbers.dtype} of shape {numbers.shape}"
        raise ProteinError(what, fix="give the subunits of a complex one by one")
    odd = np.flatnonzero((numbers < 0) | (numbers > PADDING))
    if odd.size:
        raise ProteinError(
            f"number {int(numbers[odd[0]])} at residue {int(odd[0]) + 1} is no amino acid",
            fix=f"0 to {PADDING - 1} are {AMINO_ACIDS}, {PADDING} is padding",
        )
    return bytes(_LETTERS[numbers[numbers != PADDING].astype(np.int64)]).decode("ascii")
