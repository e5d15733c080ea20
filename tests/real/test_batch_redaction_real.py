"""Ten secrets planted wherever a run could pick them up, and a run directory that holds none of them."""

from __future__ import annotations

import base64
import gzip
import json
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from programs import codex_pool

from codex_app_server.testing.loopback import LoopbackModel
from codex_batch.report.packing import unpack
from codex_batch.report.write import write_run_report
from codex_batch.store import open_run

pytestmark = pytest.mark.real
SECRETS = {
    "environment": "tok-environment-01",
    "quoted": 'tok "quoted" \\ ü-02',
    "proxy": "tok-proxy-03",
    "header": "tok-header-04",
    "mcp": "tok-mcp-05",
    "bearer": "tok-bearer-06",
    "login": "tok-login-07",
    "override": "tok-override-08",
    "dotenv": "tok-dotenv-09",
    "key": "MIIEtokPrivateKeyLine10aaaabbbb",
}


@pytest.fixture
def planted(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, and an environment, with all of them."""
    config = (home / "config.toml").read_text()
    provider = f'experimental_bearer_token = "{SECRETS["bearer"]}"\nhttp_headers = {{ X = "{SECRETS["header"]}" }}\n'
    server = f'\n[mcp_servers.none]\ncommand = "false"\nenabled = false\nenv = {{ LEVEL = "{SECRETS["mcp"]}" }}\n'
    marked = "[model_providers.loopback]\n"
    (home / "config.toml").write_text(config.replace(marked, marked + provider) + server)
    (home / "auth.json").write_text(json.dumps({"OPENAI_API_KEY": SECRETS["login"]}))
    (home / ".env").write_text(f"OTHER_SECRET={SECRETS['dotenv']}\n")
    monkeypatch.setenv("SOME_API_KEY", SECRETS["environment"])
    monkeypatch.setenv("SOME_PASSWORD", SECRETS["quoted"])
    monkeypatch.setenv("SOME_URL", f"http://user:{SECRETS['proxy']}@127.0.0.1:1/")
    monkeypatch.setenv("DEPLOY_KEY", f"-----BEGIN KEY-----\n{SECRETS['key']}\n-----END KEY-----\n")
    return home


def forms(secret: str) -> Iterator[bytes]:
    yield secret.encode()
    yield json.dumps(secret)[1:-1].encode()
    yield json.dumps(secret, ensure_ascii=False)[1:-1].encode()
    yield quote(secret, safe="").encode()
    yield base64.b64encode(secret.encode())[:-4]


def everything(directory: Path) -> Iterator[tuple[str, bytes]]:
    """All bytes below a directory: as they lie there, decompressed, and out of databases and reports."""
    for path in directory.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        yield str(path), data
        if path.suffix == ".gz":
            yield f"{path} decompressed", gzip.decompress(data)
        elif path.suffix == ".sqlite":
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
                yield f"{path} dumped", "\n".join(database.iterdump()).encode("utf-8", "replace")
        elif path.suffix == ".html":
            for packed in re.findall(rb'<script type="text/plain"[^>]*>([^<]+)<', data):
                yield f"{path} unpacked", json.dumps(unpack(packed.decode())).encode()


def leaks(directory: Path) -> list[str]:
    return [
        f"{name} in {where}"
        for where, data in everything(directory)
        for name, secret in SECRETS.items()
        if any(form in data for form in forms(secret))
    ]


@pytest.mark.slow
def test_ten_secrets_planted_everywhere_are_not_in_the_run_directory(
    tmp_path: Path, planted: Path, model: LoopbackModel
) -> None:
    words = " ".join(SECRETS.values())
    coded = " ".join(f"{quote(each, safe='')} {base64.b64encode(each.encode()).decode()}" for each in SECRETS.values())
    template, out = tmp_path / "template", tmp_path / "out"
    template.mkdir()
    (template / "a.txt").write_text("a\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run(
            ["git", "-c", "user.name=x", "-c", "user.email=x@y", "-C", str(template), *command], check=True, timeout=30
        )
    said = tmp_path / "said.txt"
    said.write_text(f"{words}\n{coded}\n")
    shell = f"cat {said}; cat {said} > secrets.txt"
    scorer = f'cat {said}; cp {said} "$CODEX_POOL_ARTIFACTS/left.txt" 2>/dev/null || true'
    samples = [
        {
            "id": "say",
            "prompt": f"say {words} {coded}",
            "target": SECRETS["environment"],
            "metadata": {"m": words},
            "tags": ["t"],
        },
        {
            "id": "tool",
            "prompt": f'[[tool_call "{shell}"]] [[text "{{output}}"]]',
            "workspace": {"template": str(template)},
            "target": "tok",
        },
        {"id": "fail", "prompt": f'[[http_error 400 message="{SECRETS["header"]}"]]', "target": "x"},
        {"id": "two", "prompts": [f"first {words}", f"second {words}"], "target": "second"},
    ]
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    arguments = (
        "batch", str(data), "--workers", "1", "--scorer", "includes", "--scorer", f"command:{scorer}",
        "-c", f'mcp_servers.none.env.MORE="{SECRETS["override"]}"',
        "--notify", f"true {SECRETS['environment']}", "-o", str(out),
    )  # fmt: skip
    # The home of the user is where the run's own is made of.
    done = codex_pool(*arguments, home=planted)
    assert done.returncode == 1, done.stderr
    found = {r["id"]: r for r in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    assert {name: r["status"] for name, r in found.items()}["say"] == "completed", done.stderr
    # The agent was asked what the dataset asks.
    assert any(words in record.prompt for record in model.requests)
    assert "[redacted SOME_API_KEY]" in found["say"]["final_response"]
    assert found["say"]["scores"]["includes"]["passed"] is True
    assert b"[redacted" in (out / "artifacts" / "tool" / "diff.patch").read_bytes()
    with open_run(out) as store:
        write_run_report(store, out / "report.html")
    for ending in ("jsonl", "csv"):
        codex_pool("runs", "export", str(out), "-o", str(out / f"export.{ending}"), home=planted)
    assert codex_pool("runs", "export", str(out), "-o", str(out / "export.eval"), home=planted).returncode == 0
    assert leaks(out) == []
    assert all(secret not in done.stderr for secret in SECRETS.values())


def test_a_redacted_home_has_what_it_needs_again_for_the_next_run(
    tmp_path: Path, planted: Path, model: LoopbackModel
) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "out"
    samples = [{"id": name, "prompt": f"say {name}"} for name in "ab"]
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    arguments = ("batch", str(data), "--workers", "1", "-o", str(out))
    for more in (("--limit", "1"), ()):
        done = codex_pool(*arguments, *more, home=planted)
        assert done.returncode == 0 and leaks(out) == [], done.stderr
        assert "[redacted " in (out / "home" / "config.toml").read_text()
    assert len(model.requests) == 2


def test_redaction_can_be_switched_off(tmp_path: Path, planted: Path) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "out"
    data.write_text(json.dumps({"id": "say", "prompt": f"say {SECRETS['environment']}"}) + "\n")
    done = codex_pool("batch", str(data), "--workers", "1", "--no-redaction", "-o", str(out), home=planted)
    assert done.returncode == 0, done.stderr
    assert SECRETS["environment"] in (out / "results.jsonl").read_text()
