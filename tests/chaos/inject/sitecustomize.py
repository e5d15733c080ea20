"""Loaded by every Python process of a pool under test, because this directory is on its PYTHONPATH.

Each process makes a FIFO named after its pid in CHAOS_DIRECTORY and does the steps that are written to it, in a thread
of its own, whatever the rest of it is doing. SIGUSR2 wedges its main thread for good: the process lives, its other
threads go on, its loop does not turn.
"""

import json
import os
import select
import signal
import threading
import time


def _serve(fifo: str) -> None:
    with open(fifo) as steps:
        for line in steps:
            name, argument = json.loads(line)
            if name == "exit":
                os._exit(argument)
            elif name == "close":
                # Not os.close: whatever is opened next would be written to.
                os.dup2(os.open(os.devnull, os.O_WRONLY), argument)
            elif name == "write":
                descriptor, text = argument
                _write(descriptor, text.encode("latin-1"))
            elif name == "flood":
                descriptor, size, line_bytes = argument
                block = (b"e" * (line_bytes - 1) + b"\n") if line_bytes else b"e" * 65536
                for _ in range(size // len(block)):
                    _write(descriptor, block)
            elif name == "clock":
                # Of this process only: nothing steps the machine's.
                time.time = lambda real=time.time, step=argument: real() + step
            elif name == "touch":
                # Tells that the steps before it are done.
                os.close(os.open(argument, os.O_CREAT | os.O_WRONLY, 0o600))


def _write(descriptor: int, data: bytes) -> None:
    """All of it, on a descriptor that may not block."""
    view = memoryview(data)
    while view:
        select.select([], [descriptor], [])
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            continue


_directory = os.environ.get("CHAOS_DIRECTORY")
if _directory:
    _fifo = os.path.join(_directory, f"{os.getpid()}.fifo")
    os.mkfifo(_fifo)
    signal.signal(signal.SIGUSR2, lambda *_: threading.Event().wait())
    threading.Thread(target=_serve, args=(_fifo,), daemon=True, name="chaos").start()
