"""CPU of a daemon that has nothing to do: all its processes but codex itself, alone and with clients attached.

    python bench/idle.py [--seconds 30] [--workers 3] [--clients 20]

`codex-pool serve` with every listener, on null app-servers; its CPU is read from /proc, so that other load of the
machine does not count. At most 0.3 % of a core with three workers; at most 1 % with 20 clients attached, each with a
thread: half of them over ipc, a quarter over TCP with a key, a quarter over WebSocket with its token.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
from measured import PoolProcesses, cpu_ns
from websocket_client import WebSocketClient

from codex_app_server.testing import null_app_server
from codex_pool import connect
from codex_pool.auth.keys import read_client_key

LIMIT_S = 60.0
# After the last change: workers rest then, as do their samplers.
SETTLE_S = 35.0
ROOMS = ("serve", "supervisor", "broker", "ingress", "gateway", "workers")
CLIENTS = "import sys, idle; idle.attach(*sys.argv[1:])"


class Daemon:
    """`codex-pool serve` below a directory. Its clients connect at `endpoint`, `tcp` and `ws`, with `key`."""

    def __init__(self, root: Path, workers: int) -> None:
        self.root, self.work = root, root / "work"
        for path in (self.work, root / "home", root / "run"):
            path.mkdir(mode=0o700)
        self.endpoint = f"ipc://{root}/run/p.sock"
        self.tcp, self.ws = f"tcp://{_address()}", f"ws://{_address()}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CODEX_")}
        self._environ = {
            **kept,
            "HOME": str(root),
            "XDG_CONFIG_HOME": str(root / "config"),
            "XDG_RUNTIME_DIR": str(root / "run"),
        }
        self.key = root / "a.key"
        self._command("keys", "new", "a", "-o", str(self.key), "--cwd-root", str(self.work))
        options = ["--endpoint", self.endpoint, "--workers", str(workers), "--codex-bin", str(self._codex())]
        options += ["--listen", self.tcp, "--listen-ws", self.ws.removeprefix("ws://"), "--home", str(root / "home")]
        options += ["--listen-unix", str(root / "run" / "u.sock"), "--listen-http", _address()]
        command = [sys.executable, "-m", "codex_pool_cli", "serve", "--json", "--log-file", str(root / "log")]
        self.process = subprocess.Popen(
            [*command, *options], env=self._environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the daemon did not start: {(root / 'log').read_text()}")
        self.supervisor: int = json.loads(line)["pid"]

    def _codex(self) -> Path:
        """A codex binary that is a null app-server, whose threads are in `work`."""
        override = null_app_server(rewrite=[['"cwd":"/"', f'"cwd":"{self.work}"']]).launch_args_override
        assert override is not None
        path = self.root / "codex"
        path.write_text("#!/bin/sh\nexec " + " ".join(f"'{each}'" for each in override) + "\n")
        path.chmod(0o700)
        return path

    def _command(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "codex_pool_cli", *arguments]
        subprocess.run(command, env=self._environ, check=True, capture_output=True, timeout=LIMIT_S)

    def cpu_ns(self) -> dict[str, int]:
        """CPU nanoseconds so far, by room; codex itself is left out."""
        found = PoolProcesses(self.supervisor)
        pids = {
            "serve": [self.process.pid],
            "supervisor": [self.supervisor],
            "broker": [found.broker],
            "ingress": [found.ingress],
            "gateway": [found.gateway],
            "workers": found.workers,
        }
        return {room: sum(map(cpu_ns, pids[room])) for room in ROOMS}

    def measure(self, seconds: float) -> dict[str, float]:
        """Percent of a core that each room takes while nothing happens."""
        time.sleep(SETTLE_S)
        before, began = self.cpu_ns(), time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        return {room: (after - before[room]) / took / 1e7 for room, after in self.cpu_ns().items()}

    @contextlib.contextmanager
    def attached(self, clients: int) -> Iterator[None]:
        """Clients in a process of their own, each with a thread that has had a turn."""
        arguments = [self.endpoint, self.tcp, self.ws, str(self.key), str(self.work), str(clients)]
        with subprocess.Popen(
            [sys.executable, "-c", CLIENTS, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent,
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            if process.stdout.readline() != b"attached\n":
                raise RuntimeError("the clients could not be attached")
            yield
            process.stdin.close()
            process.wait(LIMIT_S)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def attach(endpoint: str, tcp: str, ws: str, key: str, work: str, count: str) -> None:
    """Attach clients of all kinds, say so, and stay until stdin ends."""
    with contextlib.ExitStack() as stack:
        sockets = []
        for number in range(int(count)):
            if number % 4 == 3:
                client = WebSocketClient(ws, read_client_key(key).token)
                info = {"name": "idle", "title": None, "version": "1"}
                client.call("initialize", {"clientInfo": info}, id=1)
                client.call("thread/start", {"cwd": work, "sandbox": "read-only"}, id=2)
                sockets.append(client)
            else:
                where: dict[str, Any] = {"endpoint": tcp, "key": key} if number % 4 == 1 else {"endpoint": endpoint}
                codex = stack.enter_context(connect(**where, name="idle"))
                codex.thread_start(cwd=work, sandbox="read-only").run("hello")
        print("attached", flush=True)
        # A client of WebSocket answers the pings of the gateway.
        while not _has_ended(sockets):
            pass
        for each in sockets:
            each.close()


def _has_ended(sockets: list[WebSocketClient]) -> bool:
    import select

    readable, _, _ = select.select([0, *(each.socket for each in sockets)], [], [])
    for each in sockets:
        list(each.messages())
    return 0 in readable and not sys.stdin.buffer.read1(1)


def _address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement (default 30)")
    parser.add_argument("--workers", type=int, default=3, help="app-servers (default 3)")
    parser.add_argument("--clients", type=int, default=20, help="that are attached (default 20)")
    parser.add_argument("--out", type=Path, default=Path("out/bench/idle.json"), help="where the JSON goes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-idle-", ignore_cleanup_errors=True) as directory:
        daemon = Daemon(Path(directory), arguments.workers)
        try:
            alone = daemon.measure(arguments.seconds)
            with daemon.attached(arguments.clients):
                beside = daemon.measure(arguments.seconds)
        finally:
            daemon.stop()
    rows = []
    for what, found, most in (
        (f"idle, {arguments.workers} workers", alone, 0.3),
        (f"idle, {arguments.clients} clients attached", beside, 1.0),
    ):
        rows.append(common.row(what, sum(found.values()), "% of a core", at_most=most))
        rows += [common.row(f"  {room}", figure, "% of a core") for room, figure in found.items()]
    settings = {"seconds": arguments.seconds, "workers": arguments.workers, "clients": arguments.clients}
    common.report(arguments.out, settings, rows, alone=alone, attached=beside)
    return 0


if __name__ == "__main__":
    sys.exit(main())
