"""Clients for tests of the gateway's listeners: free ports, and requests by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path


async def connect(where: Path | int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a Unix socket, or to a port of loopback."""
    if isinstance(where, Path):
        return await asyncio.open_unix_connection(where)
    return await asyncio.open_connection("127.0.0.1", where)


def request(path: str = "/rpc", *headers: str, method: str = "GET", host: str | None = "localhost") -> bytes:
    """A handshake of WebSocket, with further headers. One given twice, such as Upgrade, replaces that of here."""
    given = {
        "Host": host,
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    for header in headers:
        name, _, value = header.partition(": ")
        given[name] = value
    lines = [f"{name}: {value}" for name, value in given.items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode()


async def answer(where: Path | int, sent: bytes) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of the answer to a request; of a handshake that is accepted no text is read."""
    reader, writer = await connect(where)
    try:
        writer.write(sent)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *rest = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
        text = "" if " 101 " in first else (await reader.read()).decode()
        return int(first.split()[1]), headers, text
    finally:
        writer.close()
