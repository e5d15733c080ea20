#!/usr/bin/env python3
"""Draws the packages of src/ from their imports into docs/architecture.md, and checks the rules of the layers.

    python scripts/draw_layout.py            # writes the drawing
    python scripts/draw_layout.py --check    # writes nothing; exit code 1 if a rule is broken or the drawing is old

A part is a sub-package of one of the packages, or one of its own modules. Every part has a layer. An import that runs
when its module is imported may reach the same layer or a lower one; one inside a function, or for type checkers only,
may reach any layer of its package. No import of any kind may reach a higher package. Of the imports that run when a
module is imported none leads back to it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- layout: begin; scripts/draw_layout.py writes it -->", "<!-- layout: end -->"

# Packages, the lowest first.
PACKAGES = ("codex_app_server", "codex_pool", "codex_batch", "codex_pool_cli")


@dataclass(frozen=True)
class Layer:
    """Parts of one height. Of a layer that is `apart` none imports another one."""

    name: str
    parts: tuple[str, ...]
    apart: bool = False


# The layers of each package, the lowest first. "*" stands for the modules that are named nowhere else.
LAYERS: dict[str, tuple[Layer, ...]] = {
    "codex_app_server": (
        Layer("base", ("errors", "generated")),
        Layer("system", ("_runtime", "_protocol")),
        Layer("values", ("config", "home", "inputs", "notifications", "presets", "trace_context", "_moved")),
        Layer("transport", ("transport", "tracing")),
        Layer("core", ("_core", "operations")),
        Layer("clients", ("_sync", "_async", "_thread_pages", "login", "results", "retry")),
        Layer("public", ("__init__", "compat", "testing")),
    ),
    "codex_pool": (
        Layer("system", ("runtime", "open_items", "sandbox_modes", "trust", "errors", "prices", "litellm_prices")),
        Layer("messages", ("protocol", "auth", "options", "option_sources", "lean_profile")),
        Layer("processes", ("account", "broker", "client", "ingress", "worker"), apart=True),
        Layer("gateway", ("gateway", "tracer")),
        Layer("supervisor", ("supervisor",)),
        Layer("pool", ("pool", "connecting", "homes", "configuration", "account_notice", "demo", "bridge")),
        Layer("public", ("__init__", "compat", "daemon"), apart=True),
    ),
    "codex_batch": (
        Layer("contract", ("plugins",)),
        Layer("tasks", ("harbor",)),
        Layer("containers", ("container",)),
        Layer("data", ("dataset", "redaction", "exit_codes"), apart=True),
        Layer("store", ("store",)),
        Layer("rules", ("rules",)),
        Layer("run", ("configuration", "display", "workspace", "scoring", "gates", "run", "manage", "merge")),
        Layer("output", ("report", "export", "opentelemetry", "hosts"), apart=True),
        Layer("view", ("view",)),
        Layer("public", ("__init__",)),
    ),
    "codex_pool_cli": (Layer("verbs", ("*",)),),
}

# Modules (and all below them) that none of these may import, whatever its kind.
NEVER: dict[str, tuple[str, ...]] = {
    "codex_pool.broker": ("pydantic", "asyncio", "opentelemetry"),
    "codex_pool.worker": ("pydantic", "asyncio", "opentelemetry"),
    "codex_pool.protocol": ("pydantic", "asyncio", "opentelemetry"),
    "codex_pool.supervisor": ("pydantic", "asyncio", "zmq", "opentelemetry"),
    "codex_batch": ("zmq",),
    "codex_pool_cli": ("zmq",),
    "codex_app_server": ("zmq", "fcntl"),
}
# Packages whose parts import each other in one direction only. Modules do so in all packages.
WITHOUT_CIRCLES = ("codex_app_server", "codex_pool")
# What a module may not import whose docstring says that it is pure.
IMPURE = ("asyncio", "multiprocessing", "select", "selectors", "socket", "subprocess", "threading", "time", "zmq")
PURE = re.compile(r"(?:^|[.:;,] )Pure[.:]", re.MULTILINE)


@dataclass(frozen=True)
class Import:
    """An import of one module by another. `late`: inside a function, or for type checkers only."""

    module: str
    imported: str
    line: int
    late: bool


@dataclass(frozen=True)
class Source:
    """The modules below `root`, with their imports."""

    root: Path

    def modules(self) -> dict[str, Path]:
        """Files by module name; of a package the name is that of the package."""
        found: dict[str, Path] = {}
        for package in PACKAGES:
            for path in sorted((self.root / package).rglob("*.py")):
                parts = path.relative_to(self.root).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        return found

    def imports(self) -> Iterator[Import]:
        """All imports, of modules here and of others."""
        modules = self.modules()
        for module, path in modules.items():
            for node, late in _imports_of(path):
                for name in _names(node, module, path.stem == "__init__"):
                    # `from x import y`: y may be a module, or a name in x.
                    head, _, _ = name.rpartition(".")
                    imported = name if name in modules or head not in modules else head
                    if imported != module:
                        yield Import(module, imported, node.lineno, late)

    def part_of(self, module: str) -> tuple[str, str]:
        """Package and part of a module: a sub-package, or the name of a module of the package itself."""
        package, _, rest = module.partition(".")
        part = rest.partition(".")[0] or "__init__"
        return package, part


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


@cache
def _imports_of(path: Path) -> list[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Import statements of a file, each with whether it is late."""
    found = []
    waiting: list[tuple[ast.AST, bool]] = [(_parsed(path), False)]
    while waiting:
        node, late = waiting.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append((node, late))
        if isinstance(node, ast.expr):
            continue
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        late = late or checking or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        waiting += [(child, late) for child in ast.iter_child_nodes(node)]
    return found


def _names(node: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> list[str]:
    """Full names that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    parts = module.split(".") if is_package else module.split(".")[:-1]
    base = parts[: len(parts) - node.level + 1] if node.level else []
    origin = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{origin}.{alias.name}" for alias in node.names]


def layer_of(package: str, part: str) -> int | None:
    """Height of a part in its package; None if it has none."""
    layers = LAYERS[package]
    for height, layer in enumerate(layers):
        if part in layer.parts:
            return height
    return next((height for height, layer in enumerate(layers) if "*" in layer.parts), None)


def problems(source: Source) -> list[str]:
    """Return the broken rules, each with file and line."""
    found: list[str] = []
    modules = source.modules()
    parts = {source.part_of(module) for module in modules}
    for package, part in sorted(parts):
        if layer_of(package, part) is None:
            found.append(f"{package}.{part} has no layer; give it one in LAYERS of scripts/draw_layout.py")
    for package, layers in LAYERS.items():
        named = {part for layer in layers for part in layer.parts if part != "*"}
        found += [
            f"{package}.{part} of LAYERS does not exist" for part in sorted(named) if (package, part) not in parts
        ]
    pure = {name for name, path in modules.items() if PURE.search(ast.get_docstring(_parsed(path)) or "")}
    imports = list(source.imports())
    for each in imports:
        where = f"{modules[each.module].relative_to(source.root.parent)}:{each.line}"
        found += [f"{where}: {why}" for why in _broken(source, each, each.module in pure)]
    return found + _circles(source, imports)


def _circles(source: Source, imports: list[Import]) -> list[str]:
    """Return the circles of modules, and those of parts in packages that have none."""
    found: list[str] = []
    imports = [each for each in imports if not each.late and source.part_of(each.imported)[0] in PACKAGES]
    modules = {(each.module, each.imported) for each in imports}
    parts = {(source.part_of(each.module), source.part_of(each.imported)) for each in imports}
    for package in WITHOUT_CIRCLES:
        found += _circle({(one[1], other[1]) for one, other in parts if one[0] == other[0] == package}, package)
    return found + _circle(modules, "modules")


def _circle(edges: set[tuple[str, str]], where: str) -> list[str]:
    """Return the members of circles, found by taking away again and again what imports nothing that is left."""
    left = {(one, other) for one, other in edges if one != other}
    while left:
        importing, imported = {one for one, _ in left}, {other for _, other in left}
        inner = {(one, other) for one, other in left if one in imported and other in importing}
        if inner == left:
            return [f"{where} import each other in a circle: {', '.join(sorted(importing))}"]
        left = inner
    return []


def _broken(source: Source, each: Import, pure: bool) -> Iterator[str]:
    package, part = source.part_of(each.module)
    for below, never in NEVER.items():
        if f"{each.module}.".startswith(f"{below}.") and _is_below(each.imported, never) and not _platform(each):
            yield f"{below} never imports {each.imported}"
    if pure and not each.late and _is_below(each.imported, IMPURE):
        yield f"{each.module} says that it is pure, and imports {each.imported}"
    other, other_part = source.part_of(each.imported)
    if other not in PACKAGES:
        return
    if PACKAGES.index(other) > PACKAGES.index(package):
        yield f"{package} imports {each.imported}, of a higher package"
    elif other == package and part != other_part and not each.late:
        own, reached = layer_of(package, part), layer_of(package, other_part)
        if own is None or reached is None:
            return
        layers = LAYERS[package]
        if reached > own:
            higher = layers[reached].name
            yield f"{part} of layer {layers[own].name!r} imports {each.imported} of {higher!r}, a higher layer"
        elif reached == own and layers[own].apart:
            yield f"{part} imports {each.imported}; the parts of layer {layers[own].name!r} do not import each other"


def _is_below(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def _platform(each: Import) -> bool:
    """Return True if an import is late, as those of one platform or of what is rarely needed may be in the SDK."""
    return each.late and each.module.startswith("codex_app_server")


def draw(source: Source) -> str:
    """Return the drawing as Markdown: one Mermaid graph of the packages, and one of each with several parts."""
    imports = [each for each in source.imports() if source.part_of(each.imported)[0] in PACKAGES]
    edges = {(source.part_of(each.module), source.part_of(each.imported)) for each in imports if not each.late}
    edges = {(one, other) for one, other in edges if one != other}
    reached = {(source.part_of(each.module)[0], source.part_of(each.imported)[0]) for each in imports}
    packages = sorted((one, other) for one, other in reached if one != other)
    lines = ["```mermaid", "graph TD", *(f"  {one} --> {other}" for one, other in _needed(packages)), "```"]
    for package in PACKAGES:
        if len(LAYERS[package]) > 1:
            inside = sorted({(one[1], other[1]) for one, other in edges if one[0] == other[0] == package})
            lines += ["", f"`{package}`:", "", "```mermaid", "graph TD", *_graph(package, inside), "```"]
    return "\n".join(lines)


def _graph(package: str, edges: list[tuple[str, str]]) -> Iterator[str]:
    for layer in reversed(LAYERS[package]):
        yield f'  subgraph {layer.name}_layer["{layer.name}"]'
        yield from (f'    {_id(part)}["{part}"]' for part in layer.parts)
        yield "  end"
    yield from (f"  {_id(one)} --> {_id(other)}" for one, other in _needed(edges))


def _id(part: str) -> str:
    """Name of a part in a graph, where a layer may have the same one."""
    return f"p_{part.strip('_')}"


def _needed(edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Leave out an arrow that a longer way of arrows implies; those of a cycle are kept."""
    below: dict[str, set[str]] = {}
    for one, other in edges:
        below.setdefault(one, set()).add(other)

    def reaches(start: str, goal: str, skipped: tuple[str, str]) -> bool:
        seen, waiting = {start}, [start]
        while waiting:
            at = waiting.pop()
            for step in below.get(at, ()):
                if (at, step) == skipped or step in seen:
                    continue
                if step == goal:
                    return True
                seen.add(step)
                waiting.append(step)
        return False

    kept = []
    for one, other in edges:
        cycle = reaches(other, one, (one, other))
        if cycle or not reaches(one, other, (one, other)):
            kept.append((one, other))
    return kept


def page_with(text: str, drawing: str) -> str:
    """Return the page with this drawing between its marks; raises ValueError if it has no marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"docs/architecture.md has no place for the drawing: {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{drawing}\n\n{END}{after}"


def main() -> int:
    source = Source(ROOT / "src")
    broken = problems(source)
    for problem in broken:
        print(problem, file=sys.stderr)
    text = PAGE.read_text(encoding="utf-8")
    new = page_with(text, draw(source))
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(new, encoding="utf-8")
    elif new != text:
        print("docs/architecture.md: the drawing is out of date; run scripts/draw_layout.py", file=sys.stderr)
        return 1
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
