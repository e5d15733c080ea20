"""Writes the access table of clients with a key: `codex_pool/auth/access.py`, and what docs/security.md shows of it.

python scripts/access_table.py            write both from access.toml
python scripts/access_table.py --check    exit 1 if they are not what it would write
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
RULES = {
    "own": "own threads only",
    "computed": "computed from the client's own threads",
    "harmless": "allowed",
    "empty": "an empty list",
    "granted": "`--allow`",
    "granted-workspace-write": "`--allow`, with `--sandbox workspace-write`",
    "granted-danger-full-access": "`--allow`, with `--sandbox danger-full-access`",
    "refused": "refused",
}
_BEGIN, _END = "<!-- access: scripts/access_table.py -->", "<!-- access ends -->"
_HEAD = '''"""The rules for limited keys, by method. Written by scripts/access_table.py from access.toml."""

from __future__ import annotations

from typing import Literal

Rule = Literal[
{rules}
]

'''


def read(path: Path) -> dict[str, str]:
    """The table as method -> rule. Raises ValueError for a rule that there is not, or a method that has two."""
    table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    rules: dict[str, str] = {}
    for rule, methods in table.items():
        if rule not in RULES:
            raise ValueError(f"{path.name}: unknown rule {rule!r}; expected one of {', '.join(RULES)}")
        for method in methods:
            if method in rules:
                raise ValueError(f"{path.name}: {method} is in {rules[method]} and in {rule}; keep one")
            rules[method] = rule
    return dict(sorted(rules.items()))


def emit_module(rules: dict[str, str]) -> str:
    """The text of access.py."""
    rows = "".join(f'    "{method}": "{rule}",\n' for method, rule in rules.items())
    names = "\n".join(f'    "{rule}",' for rule in RULES)
    return _HEAD.format(rules=names) + f"ACCESS: dict[str, Rule] = {{\n{rows}}}\n"


def emit_docs(page: str, rules: dict[str, str]) -> str:
    """The page with its table brought up to date."""
    lines = ["| method | a limited key |", "|---|---|"]
    for rule, text in RULES.items():
        methods = ", ".join(f"`{method}`" for method, its in rules.items() if its == rule)
        lines.append(f"| {methods} | {text} |")
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"docs/security.md has no place for the table: {_BEGIN} ... {_END}")
    return before + begin + "\n\n" + "\n".join(lines) + "\n\n" + end + after


def main() -> int:
    rules = read(ROOT / "scripts" / "access.toml")
    docs = ROOT / "docs" / "security.md"
    wanted = {
        ROOT / "src" / "codex_pool" / "auth" / "access.py": emit_module(rules),
        docs: emit_docs(docs.read_text(encoding="utf-8"), rules),
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what scripts/access.toml says; run scripts/access_table.py")
        return bool(stale)
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
