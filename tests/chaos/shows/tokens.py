"""Access tokens expire, refresh tokens rotate, all access tokens are revoked: no turn fails over a pool.

    python tests/chaos/shows/tokens.py [--quick]

First as many app-servers as the pool has workers, each by itself, on the same login: turns fail, because each of them
uses the refresh token that they share. Then the pool. The model accepts an access token for a few seconds only.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

import common

from codex_app_server import AppServerConfig, AppServerError, Codex
from codex_app_server.testing.issuer import LoopbackIssuer
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool import Pool

TURN_LIMIT_S = 60.0
PROMPT = "[[text deltas=5 pace_ms=40]]"
# App-servers refresh a token that expires within 300 s.
LIFETIME_S, ACCEPTED_FOR_S = 306, 6.0


def main() -> int:
    options = common.arguments(
        __doc__,
        "tokens",
        workers=(4, 4, "workers of the pool, and app-servers by themselves"),
        turns=(200, 60, "turns over the pool"),
        revoked=(5, 3, "how often all access tokens are revoked at once"),
    )
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="chaos-tokens-") as name:
        alone = run(Path(name) / "alone", options.workers, options.turns, options.revoked, pool=False)
        pooled = run(Path(name) / "pool", options.workers, options.turns, options.revoked, pool=True)
    if not alone["failed"]:
        problems.append("no turn of the app-servers by themselves failed: this shows nothing")
    if pooled["failed"] or pooled["completed"] != options.turns:
        problems.append(f"{pooled['failed']} of {options.turns} turns over the pool failed")
    if pooled["refresh tokens used twice"]:
        problems.append(f"{pooled['refresh tokens used twice']} times a refresh token was used twice")
    figures = {
        f"{kind}: {what}": value
        for kind, found in (("alone", alone), ("pool", pooled))
        for what, value in found.items()
    }
    return common.report("tokens that expire, rotate and are revoked", options.out, figures, problems)


def run(root: Path, workers: int, turns: int, revoked: int, *, pool: bool) -> dict[str, float]:
    """`turns` turns on twice as many threads as there are workers; all access tokens are revoked in between."""
    home = root / "home"
    errors: list[str] = []
    done = threading.Semaphore(0)
    with (
        LoopbackIssuer(access_lifetime_s=LIFETIME_S, accepted_for_s=ACCEPTED_FOR_S, answer_after_s=0.2) as issuer,
        LoopbackModel(authorize=issuer.accepts) as model,
    ):
        write_loopback_home(home, model.base_url, requires_openai_auth=True)
        issuer.write_auth_json(home)
        config = AppServerConfig(cwd=root, env={"CODEX_HOME": str(home), "RUST_LOG": "error", **issuer.environ})
        pools = [Pool(workers, config, log_file=root / "log")] if pool else []
        clients: list[Codex] = []
        began = time.monotonic()
        try:
            for started in pools:
                started.start()
            clients = [pools[0].connect()] if pool else [Codex(config) for _ in range(workers)]
            threads = [clients[number % len(clients)].thread_start(ephemeral=True) for number in range(workers * 2)]

            def go(number: int) -> None:
                for _ in range(number, turns, len(threads)):
                    try:
                        threads[number].run(PROMPT, timeout=TURN_LIMIT_S)
                    except AppServerError as error:
                        errors.append(str(error))
                    done.release()

            runs = [threading.Thread(target=go, args=(number,)) for number in range(len(threads))]
            for thread in runs:
                thread.start()
            revoke_at = {turns * (number + 1) // (revoked + 1) for number in range(revoked)}
            for finished in range(1, turns + 1):
                if not done.acquire(timeout=TURN_LIMIT_S * 2):
                    raise AssertionError(f"after {finished - 1} of {turns} turns nothing ends any more")
                if finished in revoke_at:
                    issuer.revoke_access_tokens()
            for thread in runs:
                thread.join()
        finally:
            for client in clients:
                client.close()
            for started in pools:
                started.close()
        for error in sorted(set(errors)):
            print(f"{'pool' if pool else 'alone'}: {errors.count(error)} x {error}", file=sys.stderr)
        return {
            "completed": turns - len(errors),
            "failed": len(errors),
            "requests refused with 401": model.unauthorized,
            "refreshed": issuer.counts["refreshed"],
            "refresh tokens used twice": issuer.counts["reused"],
            "seconds": time.monotonic() - began,
        }


if __name__ == "__main__":
    sys.exit(main())
