"""An image by URL and a question about it, for asyncio. A data URL carries the image itself: nothing is fetched."""

import asyncio
import base64
import struct
import zlib

from codex_app_server import AsyncCodex, ImageInput


def red_square(size: int) -> bytes:
    """A PNG, all red."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\xff\0\0" * size) * size
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


async def main() -> None:
    url = "data:image/png;base64," + base64.b64encode(red_square(16)).decode()
    async with AsyncCodex() as codex:
        thread = await codex.thread_start()
        result = await thread.run(["Which colour is this?", ImageInput(url)])
        print(result.final_response)


asyncio.run(main())
