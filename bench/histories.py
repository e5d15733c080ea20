"""Homes with many stored threads, or with long ones: of one real turn, whose history file is copied or extended."""

from __future__ import annotations

import json
import re
import uuid
from datetime import datetime, timedelta
from pathlib import Path

from codex_app_server import AppServerConfig, Codex
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home

_CLOCK = "%Y-%m-%dT%H-%M-%S"
_NUMBERED = re.compile(r'"ordinal":\d+')
_ITEM = re.compile(r'"id":"((?:msg_)?[0-9a-f_-]{8,})"')


def config_of(home: Path) -> AppServerConfig:
    """Configuration of an app-server on this home."""
    return AppServerConfig(env={"CODEX_HOME": str(home)}, cwd=str(home.parent))


def begin(home: Path) -> Path:
    """Make a home with one thread of one turn; the history file of that thread."""
    with LoopbackModel() as model:
        write_loopback_home(home, model.base_url)
        with Codex(config_of(home)) as codex:
            codex.thread_start().run("hello")
    (found,) = home.rglob("rollout-*.jsonl")
    return found


def thread_of(history: Path) -> str:
    """The id of the thread that a history file is of."""
    return history.stem[-36:]


def lengthen(history: Path, turns: int, answer_bytes: int) -> None:
    """Repeat the turn of a history, each time with an answer so long, under ids of its own."""
    meta, *turn = history.read_text().splitlines()
    turn_id = json.loads(turn[0])["payload"]["turn_id"]
    repeated = [line for line in turn if '"world_state"' not in line and '"thread_settings_applied"' not in line]
    (answered,) = (line for line in turn if '"AgentMessage"' in line)
    spoken = json.dumps(json.loads(answered)["payload"]["item"]["content"][0]["text"], ensure_ascii=False)[1:-1]
    ordinal = 0
    with history.open("w") as file:
        file.write(meta + "\n")
        for number in range(turns):
            word = f"word {number} "
            answer = word * (answer_bytes // len(word))
            for line in repeated:
                if number and ('"role":"developer"' in line or "environment_context" in line):
                    continue
                ordinal += 1
                line = line.replace(turn_id, _moved(turn_id, number)).replace(spoken, answer)
                line = _NUMBERED.sub(f'"ordinal":{ordinal}', line, count=1)
                file.write(_rename(line, number) + "\n")


def _rename(line: str, number: int) -> str:
    return _ITEM.sub(lambda found: f'"id":"{_moved(found[1], number)}"', line)


def _moved(id: str, number: int) -> str:
    """An id like this one, for the turn of this number."""
    if id.startswith("msg_") or len(id) != 36 or not number:
        return f"{id}_{number}" if number else id
    return str(uuid.UUID(int=uuid.UUID(id).int + (number << 40)))


def multiply(history: Path, threads: int, seconds: float = 2.0) -> list[str]:
    """Copy a history until there are so many, begun within so many seconds; the ids of all.

    Files are named as the app-server does: by the second, and an id that begins with the time in milliseconds.
    """
    text, old = history.read_text(), thread_of(history)
    began_ms = int(old.replace("-", "")[:12], 16)
    began = datetime.strptime(history.name[len("rollout-") : -len(f"-{old}.jsonl")], _CLOCK)
    ids = [old]
    for number in range(1, threads):
        earlier_ms = int(number * seconds * 1000 / threads)
        plain = f"{began_ms - earlier_ms:012x}7{number & 0xFFF:03x}8{number >> 12:03x}{number:012x}"
        moment = began - timedelta(milliseconds=earlier_ms)
        new = str(uuid.UUID(plain))
        directory = history.parents[3] / f"{moment:%Y/%m/%d}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"rollout-{moment:{_CLOCK}}-{new}.jsonl").write_text(text.replace(old, new))
        ids.append(new)
    return ids
