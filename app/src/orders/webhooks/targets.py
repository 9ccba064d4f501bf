"""Where webhooks may go: to public addresses, by TLS, to few ports. Strangers name the targets, and we stand in a private network.

A name is resolved once for each attempt, every address of the answer is looked at, and the connection goes to one of those: there is no
second answer that could say otherwise.
"""

import asyncio
import re
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

import httpx

from orders.settings import Webhooks

RESOLVE_SECONDS = 1.0
_THREADS = 32
_PORTS = {"https": 443, "http": 80}
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")

# Beside what is_global leaves out: addresses that stand for others, and one that is public by its number only.
_REFUSED = tuple(
    map(
        ip_network,
        (
            "192.0.0.0/24",  # protocols' own; some of it is global by name
            "192.88.99.0/24",  # relays of 6to4
            "168.63.129.16/32",  # a cloud's own address for its machines
            "64:ff9b::/96",  # NAT64
            "64:ff9b:1::/48",
            "2001::/32",  # Teredo
            "2002::/16",  # 6to4
            "3fff::/20",  # examples
        ),
    )
)
_UNICAST = ip_network("2000::/3")  # all that is given out of IPv6


class RefusedTargetError(Exception):
    """A webhook may not go there; the message is for the endpoint's owner."""


class Target(NamedTuple):
    """Where a webhook goes: its address as written, and the addresses that it may be sent to."""

    url: httpx.URL
    addresses: Sequence[str]


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address is anybody's in the Internet, and no special one."""
    if isinstance(address, IPv6Address) and (address.scope_id or address not in _UNICAST):
        return False  # IPv4 in IPv6's clothes too
    if any(address in network for network in _REFUSED if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def parse_target(text: str, webhooks: Webhooks) -> httpx.URL:
    """Return an address that is written as that of a webhook may be; where its name leads is another question.

    Raises:
        RefusedTargetError: it is malformed, or its scheme or port is not allowed.
    """
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise RefusedTargetError("is no address of the web") from error
    if url.scheme not in ({"https", "http"} if webhooks.networks else {"https"}):
        raise RefusedTargetError("is not https://...")
    if url.userinfo or url.fragment:
        raise RefusedTargetError("has a user, a password or a fragment")
    # What is looked at is what is asked for: no name that one program reads like this and another like that.
    if not text.isascii() or not (_NAME.fullmatch(url.host) or _literal(url.host)):
        raise RefusedTargetError("has no host's name of A-Z, a-z, 0-9, ., _ and -")
    if (url.port or _PORTS[url.scheme]) not in webhooks.ports:
        raise RefusedTargetError(f"has a port that is not one of {', '.join(map(str, sorted(webhooks.ports)))}")
    return url


def _literal(host: str) -> bool:
    try:
        return isinstance(ip_address(host), IPv6Address)
    except ValueError:
        return False


class Targets:
    """Resolves names, and refuses where they lead."""

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks
        # Resolution blocks; in threads of its own, since others' name servers may take their time.
        self._threads = ThreadPoolExecutor(_THREADS, "resolve")

    async def vet(self, text: str) -> Target:
        """Return where a webhook may go now.

        Raises:
            RefusedTargetError: nowhere, since the name does not resolve in time, or an address of it is none of the Internet's.
        """
        url = parse_target(text, self._webhooks)
        addresses = [*dict.fromkeys(await self._resolve(url.host, url.port or _PORTS[url.scheme]))]
        for address in addresses:
            found = ip_address(address)
            named = any(found in network for network in self._webhooks.networks if network.version == found.version)
            if not named and not is_public(found):
                raise RefusedTargetError(f"leads to {address}, which is no address of the Internet")
            if not named and url.scheme != "https":
                raise RefusedTargetError("is not https://...")
        return Target(url, addresses)

    async def _resolve(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        resolving = loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        )
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                return [str(found[4][0]) for found in await resolving]
        except TimeoutError as error:
            raise RefusedTargetError("has a name that is not resolved in time") from error
        except (OSError, UnicodeError) as error:
            raise RefusedTargetError("has a name that does not resolve") from error

    def close(self) -> None:
        """Give up what is being resolved."""
        self._threads.shutdown(wait=False, cancel_futures=True)
