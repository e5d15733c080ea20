"""Reach of an agent in a container: not the network, not this machine's files, not the login, not other samples."""

from __future__ import annotations

import itertools
import json
import shlex
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import containers
from programs import codex_pool

from codex_app_server.testing.loopback import LoopbackModel, Rule, Script, Text, ToolCall

LIMIT_S = 120.0
SECRET = "only on this machine"


@contextmanager
def listener() -> Iterator[tuple[int, list[str]]]:
    """A port on all addresses of this machine, and who has come to it."""
    came: list[str] = []
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        server.settimeout(0.1)
        over = threading.Event()

        def accept() -> None:
            while not over.is_set():
                try:
                    connection, address = server.accept()
                except TimeoutError:
                    continue
                came.append(str(address))
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1], came
        finally:
            over.set()
            thread.join()


def own_addresses() -> list[str]:
    """All addresses of this machine, the ones of its bridges included."""
    lines = Path("/proc/net/fib_trie").read_text().splitlines()
    found = {before.split()[-1] for before, line in itertools.pairwise(lines) if "host LOCAL" in line}
    inet6 = [line.split()[0] for line in Path("/proc/net/if_inet6").read_text().splitlines()]
    return [*sorted(found), *(":".join(each[at : at + 4] for at in range(0, 32, 4)) for each in inet6)]


def batch(tmp_path: Path, home: Path, image: str, *samples: dict[str, Any]) -> dict[str, dict[str, Any]]:
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    options = ("--workers", "1", "--home", str(home), "-o", str(out), "--container", "podman", "--image", image)
    done = codex_pool("batch", str(data), *options, limit_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return {one["id"]: one for one in map(json.loads, (out / "results.jsonl").read_text().splitlines())}


REACH = """
import socket, sys
for address in sys.argv[2:]:
    try:
        socket.create_connection((address, int(sys.argv[1])), timeout=2).close()
        print("reached", address)
    except OSError as error:
        print("not reached", address)
print("tried", len(sys.argv) - 2)
"""
SERVE = """
import socket, time
server = socket.create_server(("::", 7777), family=socket.AF_INET6, dualstack_ipv6=True)
server.settimeout(15)
try:
    print("somebody came:", server.accept()[1])
except TimeoutError:
    print("waited in vain")
"""


def test_neither_this_machine_nor_another_sample_is_reached(
    tmp_path: Path, home: Path, image: str, model: LoopbackModel
) -> None:
    addresses = own_addresses()
    assert "127.0.0.1" in addresses and len(addresses) > 2
    with listener() as (port, came):
        tries = " ".join((*addresses, "169.254.1.1", "10.88.0.1", "host.containers.internal"))
        model.script = Script(
            (
                Rule(
                    ToolCall((f"python3 reach.py {port} {tries}; python3 reach.py 7777 {tries}",)), contains="reaches"
                ),
                Rule(ToolCall(("python3 serve.py",)), contains="serves"),
            ),
            Text("{output}"),
        )
        files = {"reach.py": REACH, "serve.py": SERVE}
        found = batch(
            tmp_path,
            home,
            image,
            *({"id": name, "prompt": name, "workspace": {"files": files}} for name in ("serves", "reaches")),
        )
        # The listener works.
        socket.create_connection(("127.0.0.1", port)).close()
        deadline = time.monotonic() + LIMIT_S
        while not came and time.monotonic() < deadline:
            time.sleep(0.05)
    (outputs,) = [each.tool_outputs for each in model.requests if each.prompt == "reaches" and each.tool_outputs]
    tried = len(addresses) + 3
    assert outputs[0].count(f"tried {tried}") == 2 and outputs[0].count("not reached") == 2 * tried, outputs
    (served,) = [each.tool_outputs for each in model.requests if each.prompt == "serves" and each.tool_outputs]
    assert "waited in vain" in served[0], served
    assert len(came) == 1 and all(record["valid"] for record in found.values())


@pytest.mark.parametrize("who", ["agent", "sub-agent"])
def test_files_and_login_of_this_machine_are_not_there(
    tmp_path: Path, home: Path, image: str, model: LoopbackModel, who: str
) -> None:
    (home / "auth.json").write_text(json.dumps({"OPENAI_API_KEY": SECRET}))
    (tmp_path / "secret.txt").write_text(SECRET)
    private = [
        home / "auth.json",
        home / "config.toml",
        tmp_path / "secret.txt",
        tmp_path / "data.jsonl",
        Path(__file__),
    ]
    names = shlex.join(map(str, private))
    commands = (
        f"cat {names}; ls {tmp_path}; cat /proc/1/environ; env; ls /proc/*/root/root; echo looked",
        # By patches codex writes files itself.
        f"apply_patch <<'E'\n*** Begin Patch\n*** Add File: {tmp_path}/written.txt\n+x\n*** End Patch\nE\n",
        "touch looked",
    )
    child = ToolCall(json.dumps({"message": "look at all"}), tool="multi_agent_v1.spawn_agent")
    # A sub-agent ends with its sample, which waits for it in a second turn: they have the workspace in common.
    wait = ToolCall("for i in $(seq 300); do test -e looked && break; sleep 0.1; done")
    model.script = Script(
        (
            Rule(ToolCall(commands), contains="look at all"),
            Rule(child, contains="delegate"),
            Rule(wait, contains="then wait"),
        ),
        Text("{output}"),
    )
    prompts = ["look at all"] if who == "agent" else ["delegate", "then wait"]
    sample = {"id": "a", "prompts": prompts, "workspace": {"files": {"given": "x"}}}
    before = containers()
    batch(tmp_path, home, image, sample)
    looked = [
        each for each in model.requests if "look at all" in each.prompt and len(each.tool_outputs) == len(commands)
    ]
    assert looked, [(each.prompt, each.tool_outputs) for each in model.requests]
    output = looked[0].tool_outputs[0]
    assert SECRET not in output and "looked" in output and output.count("No such file") >= len(private), output
    assert "OPENAI" not in output and "CODEX_HOME" not in output, output
    assert not (tmp_path / "written.txt").exists()
    assert containers() == before


def test_an_image_of_this_machine_cannot_be_looked_at(
    tmp_path: Path, home: Path, image: str, model: LoopbackModel
) -> None:
    from base64 import b64decode

    picture = tmp_path / "picture.png"
    picture.write_bytes(
        b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
    )
    view = ToolCall(json.dumps({"path": str(picture)}), tool="view_image")
    model.script = Script((Rule(view, contains="see"),), Text("{output}"))
    batch(tmp_path, home, image, {"id": "a", "prompt": "see"})
    (outputs,) = [each.tool_outputs for each in model.requests if each.tool_outputs]
    assert "data:" not in outputs[0] and "unable" in outputs[0], outputs
