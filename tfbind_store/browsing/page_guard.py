"""Which requests a page on this machine answers: those of its own pages, under names that nobody else gives.

A name can be pointed at this machine by whoever owns it (DNS rebinding), and any site can link to an address here; both
would have a visitor's browser read what only the visitor may.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from tfbind_store.errors import RequestRefused

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def require_own_host(header: str, *, host: str, names: Sequence[str]) -> None:
    """Refuse a request whose Host is a name that somebody else may have pointed at this machine.

    An address cannot be pointed anywhere, so that any address will do where the page listens beyond this machine.

    Raises
    ------
    RequestRefused
        With the name that was used.
    """
    asked = header.strip().lower()
    name = asked[1 : asked.index("]")] if asked.startswith("[") and "]" in asked else asked.rpartition(":")[0] or asked
    known = {*LOOPBACK, *(given.lower() for given in names)}
    if name not in known and not (host not in LOOPBACK and _is_address(name)):
        raise RequestRefused(f"the request names the host {header[:80]!r}", where="Host")


def require_own_site(site: str | None, mode: str | None, *, path: str) -> None:
    """Refuse what another site's page makes a browser ask for; a link from there may lead to the overview.

    Parameters
    ----------
    site, mode
        ``Sec-Fetch-Site`` and ``Sec-Fetch-Mode``, as browsers send them; other programs send none.

    Raises
    ------
    RequestRefused
        If the browser says so.
    """
    is_link_to_start = path == "/" and mode == "navigate"
    if site not in (None, "none", "same-origin") and not is_link_to_start:
        raise RequestRefused("the request comes from another site", where=path[:80])


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
