"""The address of a listener over TCP, HOST:PORT, and the names by which clients may call its host."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import NamedTuple

from ...protocol.endpoints import EndpointError

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[^\s:/\[\]]+)):(?P<port>[0-9]{1,5})")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})")


class Address(NamedTuple):
    """A host, without brackets, and a port."""

    host: str
    port: int


def parse(text: str, option: str = "listen_ws") -> Address:
    """HOST:PORT of this option, with IPv6 addresses in brackets. Raises EndpointError for anything else."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise EndpointError(
            f"{option} is {text!r}; expected HOST:PORT with a port from 1 to 65535, such as 127.0.0.1:7610 or "
            "[::1]:7610"
        )
    return Address(match["six"] or match["host"], int(match["port"]))


def resolve(address: Address, option: str = "listen_ws") -> tuple[socket.AddressFamily, tuple[object, ...]]:
    """Family and address to bind. Raises EndpointError for a host that is not known."""
    try:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise EndpointError(
            f"{option}: there is no host {address.host!r}: {reason}; give an address of this machine"
        ) from None
    return found[0], found[4]


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def split_names(text: str | None) -> tuple[str, ...]:
    """Names of hosts, separated by commas, in lower case. Raises EndpointError for what is none."""
    names = tuple(name.strip().lower() for name in (text or "").split(",") if name.strip())
    for name in names:
        if _NAME.fullmatch(name) is None and not _is_address(name):
            raise EndpointError(
                f"allow_host has {name!r}; expected names of hosts without ports, separated by commas, such as "
                "pool.example,10.0.0.7"
            )
    return names


def host_of(header: str) -> str:
    """The host in a Host header, in lower case, without port and brackets."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.count(":") == 1 else header


def is_known_host(header: str | None, known: frozenset[str]) -> bool:
    """True if a Host header names one of `known`, localhost, or a loopback address.

    A page in a browser whose name was made to lead here sends its own name, which is none of these.
    """
    if not header:
        return False
    host = host_of(header)
    return host in known or host == "localhost" or is_loopback(host)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
