"""A bare relay of ZeroMQ frames over the hops that a pool has, and no more: what a pool is measured against.

    python bench/relay.py source   a worker's place: the app-server's stdout, as much as comes, as one frame
    python bench/relay.py relay    the broker's place: each frame to the client of that worker
    python bench/relay.py client   a client's place: counts the lines of a frame
    python bench/relay.py echo     a worker's place: each message back where it came from

One JSON argument: `endpoint`, a directory for the sockets; `number` of a source or client; `argv` of the app-server;
`turns`. Nothing is numbered, kept, acknowledged or told apart; a full queue makes its writer wait.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import zmq

READ_BYTES = 512 * 1024
QUEUE_MESSAGES = 1000
# How the last line of a turn begins.
END = b'{"method":"turn/completed"'


def socket(context: Any, kind: int, identity: bytes = b"") -> Any:
    made = context.socket(kind)
    made.setsockopt(zmq.SNDHWM, QUEUE_MESSAGES)
    made.setsockopt(zmq.RCVHWM, QUEUE_MESSAGES)
    made.setsockopt(zmq.LINGER, 0)
    if identity:
        made.setsockopt(zmq.IDENTITY, identity)
    return made


def source(settings: dict[str, Any], context: Any) -> None:
    import fcntl

    link = socket(context, zmq.DEALER, b"w%d" % settings["number"])
    link.connect(f"ipc://{settings['endpoint']}/workers")
    app_server = subprocess.Popen(settings["argv"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert app_server.stdin is not None and app_server.stdout is not None
    stdout = app_server.stdout.fileno()
    fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, READ_BYTES)
    os.set_blocking(stdout, False)
    poller = zmq.Poller()
    poller.register(stdout, zmq.POLLIN)
    poller.register(link, zmq.POLLIN)
    client = b"c%d" % settings["number"]
    link.send_multipart([client, b"here"])
    while True:
        ready = dict(poller.poll())
        if link in ready:
            app_server.stdin.write(link.recv_multipart()[-1] + b"\n")
        if stdout in ready:
            link.send_multipart([client, os.read(stdout, READ_BYTES)])


def relay(settings: dict[str, Any], context: Any) -> None:
    workers, clients = socket(context, zmq.ROUTER), socket(context, zmq.ROUTER)
    poller = zmq.Poller()
    for each, name in ((workers, "workers"), (clients, "clients")):
        each.setsockopt(zmq.ROUTER_MANDATORY, 1)
        each.bind(f"ipc://{settings['endpoint']}/{name}")
        poller.register(each, zmq.POLLIN)
    here: set[bytes] = set()
    print("ready", flush=True)
    while True:
        for each, _ in poller.poll():
            for _ in range(500):
                try:
                    identity, *frames = each.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                if each is clients:
                    workers.send_multipart([b"w" + identity[1:], *frames])
                elif identity in here:
                    clients.send_multipart(frames)
                else:
                    here.add(identity)
                    print("here", flush=True)


def client(settings: dict[str, Any], context: Any) -> None:
    link = socket(context, zmq.DEALER, b"c%d" % settings["number"])
    link.connect(f"ipc://{settings['endpoint']}/clients")

    def ask(number: int, method: str, params: dict[str, object]) -> None:
        link.send(json.dumps({"id": number, "method": method, "params": params}).encode())

    def read(turns: int) -> int:
        seen = 0
        for number in range(turns):
            ask(number, "turn/start", {"threadId": "t" * 36, "input": []})
            while True:
                frame = link.recv()
                seen += frame.count(b"\n")
                if frame.find(END, -2048) >= 0 or frame.rfind(END) >= 0:
                    break
        return seen

    read(1)
    print("ready", flush=True)
    sys.stdin.readline()
    began, began_cpu = time.monotonic(), time.process_time()
    seen = read(settings["turns"])
    done = {"seen": seen, "began": began, "ended": time.monotonic(), "cpu_s": time.process_time() - began_cpu}
    print(json.dumps(done), flush=True)
    sys.stdin.readline()


def echo(settings: dict[str, Any], context: Any) -> None:
    link = socket(context, zmq.DEALER, b"w%d" % settings["number"])
    link.connect(f"ipc://{settings['endpoint']}/workers")
    link.send_multipart([b"c%d" % settings["number"], b"here"])
    while True:
        link.send_multipart([b"c%d" % settings["number"], link.recv_multipart()[-1]])


if __name__ == "__main__":
    {"source": source, "relay": relay, "client": client, "echo": echo}[sys.argv[1]](
        json.loads(sys.argv[2]), zmq.Context()
    )
