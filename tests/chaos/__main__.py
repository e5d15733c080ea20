"""All of the chaos suite, in some processes at once, because most of it waits: `make chaos`.

It is this directory, and the test files beside it that have tests marked chaos. Prints the table, and writes it with
what was seen of each cell to out/chaos.md. Bounded: what has not ended after LIMIT_S is ended, and has failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from .report import Report

LIMIT_S = 40 * 60
HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="WORDS", help="only what pytest finds by these")
    parser.add_argument("--processes", type=int, default=3, help="that run at once (default 3)")
    parser.add_argument("--out", type=Path, default=Path("out/chaos.md"), help="where the table goes")
    options = parser.parse_args()
    parts = options.out.with_suffix("")
    parts.mkdir(parents=True, exist_ok=True)
    others = [
        str(path)
        for path in HERE.parent.rglob("test_*.py")
        if HERE not in path.parents and "mark.chaos" in path.read_text()
    ]
    shares = range(1, options.processes + 1)
    deadline = time.monotonic() + LIMIT_S
    began = time.monotonic()
    running: list[tuple[int, subprocess.Popen[bytes]]] = []
    for share in shares:
        (parts / f"{share}.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", str(HERE), *others, "-m", "chaos or not chaos"]
        command += ["--chaos-share", f"{share}/{options.processes}", "--chaos-report", str(parts / f"{share}.json")]
        command += ["-k", options.k] if options.k else []
        with (parts / f"{share}.log").open("wb") as log:
            running.append((share, subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)))
    report, failed = Report(), False
    for share, process in running:
        try:
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            # Ctrl-C: its tests end what they started.
            process.send_signal(2)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            code = -1
        # 5: there was nothing for it to do.
        if code not in (0, 5):
            failed = True
            print((parts / f"{share}.log").read_text(errors="replace")[-20_000:])
        if (parts / f"{share}.json").exists():
            report.merge((parts / f"{share}.json").read_text())
    options.out.write_text(report.markdown())
    print(report.table())
    print(f"{time.monotonic() - began:.0f} s; written to {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
