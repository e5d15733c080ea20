"""JUnit XML of a run: a test suite for each variant with a test case for each sample, and one of the gates. Pure.

Elements and attributes are those of the schema of Jenkins (jenkinsci/xunit-plugin, junit-10.xsd), which GitHub actions
for test reports and GitLab read as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from xml.sax.saxutils import escape, quoteattr

from .cases import Case, Kind
from .verdicts import Verdict

# What XML 1.0 does not allow, not even as a reference.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
GATES = "gates"


def allowed(text: str) -> str:
    """The text with characters that XML forbids as escapes such as `\\x1b`."""
    return _FORBIDDEN.sub(lambda match: ascii(match[0])[1:-1], text)


def head(name: str, kinds: Sequence[Mapping[str, int]], verdicts: Sequence[Verdict], time_s: float) -> Iterator[str]:
    """Begin a document; `kinds` counts the cases of each suite by kind."""
    total: Counter[str] = Counter()
    for counts in [*kinds, _kinds_of(verdicts)]:
        total.update(counts)
    yield '<?xml version="1.0" encoding="UTF-8"?>\n'
    yield _open("testsuites", name=name, **_counts(total), time=f"{time_s:.3f}") + "\n"


def suite(
    name: str, kinds: Mapping[str, int], time_s: float, began_at: float | None, cases: Iterable[Case], classname: str
) -> Iterator[str]:
    """A test suite of samples. `began_at` is in seconds since 1970."""
    began = {}
    if began_at is not None:
        began = {"timestamp": datetime.fromtimestamp(began_at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")}
    counts = {**_counts(kinds), "skipped": str(kinds.get("skipped", 0))}
    yield _open("testsuite", name=name, **counts, time=f"{time_s:.3f}", **began) + "\n"
    for case in cases:
        yield _case(case, classname)
    yield "</testsuite>\n"


def tail(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """End a document, with the suite of the gates if there are any."""
    if verdicts:
        counts = {**_counts(_kinds_of(verdicts)), "skipped": "0"}
        yield _open("testsuite", name=GATES, **counts, time="0.000") + "\n"
        for verdict in verdicts:
            kind: Kind = "passed" if verdict.passed else "failure"
            case = Case(verdict.gate, "", kind, type=verdict.kind, message=verdict.reason, text=verdict.reason)
            yield _case(case, GATES)
        yield "</testsuite>\n"
    yield "</testsuites>\n"


def _case(case: Case, classname: str) -> str:
    opened = _open("testcase", classname=classname, name=case.name, time=f"{case.time_s:.3f}")
    if case.kind == "passed":
        return f"{opened[:-1]}/>\n"
    if case.kind == "skipped":
        return f"{opened}{_open('skipped', message=case.message)[:-1]}/></testcase>\n"
    detail = _open(case.kind, message=case.message, type=case.type)
    text = escape(allowed(case.text), {"\r": "&#13;"})
    return f"{opened}{detail}{text}</{case.kind}></testcase>\n"


def _open(tag: str, **attributes: str) -> str:
    return f"<{tag}{''.join(f' {name}={quoteattr(allowed(value))}' for name, value in attributes.items())}>"


def _counts(kinds: Mapping[str, int]) -> dict[str, str]:
    return {
        "tests": str(sum(kinds.values())),
        "failures": str(kinds.get("failure", 0)),
        "errors": str(kinds.get("error", 0)),
    }


def _kinds_of(verdicts: Sequence[Verdict]) -> Counter[str]:
    return Counter("passed" if verdict.passed else "failure" for verdict in verdicts)
