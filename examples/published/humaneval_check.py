"""Runs the published test of a HumanEval task on solution.py; a command scorer with `parse: json`."""

import json
import secrets
import subprocess
import sys

PROGRAM = """
import json, sys
asked = json.load(sys.stdin)
names = {"__name__": "solution"}
exec(compile(open("solution.py").read(), "solution.py", "exec"), names)
exec(compile(asked["test"], "test", "exec"), names)
names["check"](names[asked["entry_point"]])
print("\\n" + asked["word"])
"""
TIMEOUT_S = 30

metadata = json.load(sys.stdin)["metadata"]
# Said only by a program that comes to its end: a solution may end it before.
word = secrets.token_hex(16)
asked = json.dumps({"test": metadata["test"], "entry_point": metadata["entry_point"], "word": word})
try:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=asked, capture_output=True, text=True, timeout=TIMEOUT_S
    )
except subprocess.TimeoutExpired:
    print(json.dumps({"passed": False, "explanation": f"took more than {TIMEOUT_S} s"}))
else:
    passed = done.stdout.splitlines()[-1:] == [word]
    print(json.dumps({"passed": passed, "explanation": None if passed else done.stderr[-1000:]}))
