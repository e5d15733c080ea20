"""An image file and a question about it. The app-server reads the file: the path is one of its machine."""

import struct
import tempfile
import zlib
from pathlib import Path

from codex_app_server import Codex, LocalImageInput


def red_square(size: int) -> bytes:
    """A PNG, all red."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\xff\0\0" * size) * size
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


with tempfile.TemporaryDirectory() as directory, Codex() as codex:
    path = Path(directory) / "square.png"
    path.write_bytes(red_square(16))
    thread = codex.thread_start()
    result = thread.run(["Which colour is this?", LocalImageInput(str(path))])
    print(result.final_response)
