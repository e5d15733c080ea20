"""Probes of a CODEX_HOME: its configuration, what it holds, and its log-in. Nothing is opened for writing."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from codex_app_server._runtime.files import read_file
from codex_app_server.errors import HomeError
from codex_app_server.home import check_file
from codex_pool.account.login_state import login_state
from codex_pool.account_notice import DEFAULT_PROVIDER, has_credentials

from .facts import Home, Login

COUNT_LIMIT_S = 4.0
_THREADS = ("sessions", "archived_sessions")


def home(path: Path) -> Home:
    """The facts about one CODEX_HOME."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return Home(str(path), exists=False)
    except OSError as error:
        return Home(str(path), exists=True, problem=f"{path} cannot be used: {error.strerror}")
    if not stat.S_ISDIR(status.st_mode):
        return Home(str(path), exists=True, problem=f"{path} is not a directory")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return Home(str(path), exists=True, problem=f"{path} cannot be written, but codex keeps threads there")
    _, problem = configuration(path)
    threads = thread_bytes = database_bytes = log_bytes = 0
    is_counted, deadline = True, time.monotonic() + COUNT_LIMIT_S
    for name, size_bytes in files_of(path):
        if time.monotonic() > deadline:
            is_counted = False
            break
        top = name.split("/", 1)[0]
        if top in _THREADS:
            threads += name.endswith(".jsonl")
            thread_bytes += size_bytes
        elif ".sqlite" in name or "/sqlite/" in name:
            database_bytes += size_bytes
        elif top == "log":
            log_bytes += size_bytes
    return Home(
        str(path),
        exists=True,
        has_config=os.path.exists(path / "config.toml"),
        config_problem=problem,
        mode=stat.S_IMODE(status.st_mode),
        threads=threads,
        thread_bytes=thread_bytes,
        database_bytes=database_bytes,
        log_bytes=log_bytes,
        is_counted=is_counted,
    )


def files_of(directory: Path) -> Iterator[tuple[str, int]]:
    """Names, relative to the directory, and sizes of the files below it. Links are not followed. Raises nothing."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            entries = sorted(os.scandir(directory / below), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            name = f"{below}{entry.name}"
            try:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{name}/")
                else:
                    yield name, entry.stat(follow_symlinks=False).st_size
            except OSError:
                continue


def configuration(path: Path) -> tuple[dict[str, Any], str | None]:
    """The config.toml of a home, {} without one, and why it cannot be read; None if it can."""
    import tomli

    file = path / "config.toml"
    try:
        check_file(file)
        return tomli.loads(read_file(file).decode("utf-8-sig")), None
    except FileNotFoundError:
        return {}, None
    except OSError as error:
        return {}, error.strerror or str(error)
    except HomeError as error:
        return {}, str(error)
    except (ValueError, RecursionError) as error:
        return {}, f"it is no TOML: {error}"


def login(path: Path, environ: Mapping[str, str]) -> Login:
    """The log-in of a home, and whether its model provider needs one. Nothing is asked of the provider."""
    config, _ = configuration(path)
    provider = config.get("model_provider")
    name = provider if isinstance(provider, str) and provider else DEFAULT_PROVIDER
    providers = config.get("model_providers")
    table = providers.get(name) if isinstance(providers, dict) else None
    table = table if isinstance(table, dict) else {}
    variable = table.get("env_key")
    missing = variable if isinstance(variable, str) and variable and not environ.get(variable) else None
    needs_none = name != DEFAULT_PROVIDER and bool(table) and not table.get("requires_openai_auth")
    known = Login(
        kind=None,
        provider=name,
        provider_has_credentials=needs_none or has_credentials({name: table}, name),
        missing_variable=missing,
    )
    file = path / "auth.json"
    try:
        check_file(file)
        content, mode = read_file(file), stat.S_IMODE(file.stat().st_mode)
        state = login_state(content, time.time())
    except FileNotFoundError:
        return known
    except (HomeError, OSError) as error:
        return _with(known, problem=str(error))
    except ValueError:
        return _with(known, problem=f"{file} is no JSON object: codex takes nobody for logged in")
    return _with(known, mode=mode, **state._asdict())


def _with(login: Login, **changes: Any) -> Login:
    import dataclasses

    return dataclasses.replace(login, **changes)
