"""Which module imports which, as it stands in the sources: DESIGN.md, "Import direction"."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashgen.resources import data_dir

GENERATOR = Path(__file__).parent.parent / "generator" / "flashgen"
RUNTIME = data_dir("runtime") / "flashgen_runtime"
DISTRIBUTIONS = {"flashgen": GENERATOR, "flashgen_runtime": RUNTIME}

Graph = dict[str, set[str]]

# From the top down: a module imports its own layer or lower ones. What is not listed belongs to the lowest layer.
GENERATOR_LAYERS = (
    ("cli", "__main__"),
    ("commands",),
    ("pipeline",),
    ("stages",),
)
RUNTIME_LAYERS = {
    # Package: what it may import beside itself and the modules that every package may import.
    "server": {"transport"},
    "transport": set(),
    "worker": {"transport", "models", "engine", "loader"},
    "models": {"engine", "loader"},
    "engine": {"loader", "quantization", "kernels"},
    "loader": {"quantization", "kernels"},
    "quantization": {"kernels"},
    "kernels": set(),
}
TORCH_FREE = ("server", "transport", "testing", "worker.worker", "worker.engine_loop", "worker.model_manager")


def modules(package: str) -> Iterator[tuple[str, Path]]:
    root = DISTRIBUTIONS[package]
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


def imports_of(path: Path, *, at_import: bool) -> set[str]:
    """Names that a module imports; with `at_import` only those that importing it runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in _imports(tree, at_import=at_import):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _imports(node: ast.AST, *, at_import: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif not _is_skipped(child, at_import=at_import):
            yield from _imports(child, at_import=at_import)


def _is_skipped(node: ast.AST, *, at_import: bool) -> bool:
    """What importing the module does not run, and what only type checkers read."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return at_import
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def graph(package: str, *, at_import: bool) -> Graph:
    """Edges between the modules of one distribution."""
    paths = dict(modules(package))
    return {
        name: {target for imported in imports_of(path, at_import=at_import) if (target := _module(imported, paths))}
        - {name}
        for name, path in paths.items()
    }


def _module(imported: str, paths: dict[str, Path]) -> str | None:
    """The module that a name means: `flashgen.errors.SpecError` is `flashgen.errors`."""
    if imported in paths:
        return imported
    parent = imported.rpartition(".")[0]
    return parent if parent in paths else None


def cycle(edges: Graph) -> list[str] | None:
    """Some cycle, as the modules on it."""
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> list[str] | None:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return None
        for target in sorted(edges[name]):
            if found := walk(target, [*trail, name]):
                return found
        done.add(name)
        return None

    return next((found for name in sorted(edges) if (found := walk(name, []))), None)


@pytest.mark.parametrize("package", DISTRIBUTIONS)
def test_no_module_imports_itself_through_others(package: str) -> None:
    """A cycle would make the order of imports matter. A package's `__init__` that collects names counts too."""
    assert cycle(graph(package, at_import=True)) is None


@pytest.mark.parametrize(("package", "other"), [("flashgen", "flashgen_runtime"), ("flashgen_runtime", "flashgen")])
def test_the_distributions_do_not_know_each_other(package: str, other: str) -> None:
    """Their contract is `service.yaml`; the compiler executes the runtime and never imports it."""
    for name, path in modules(package):
        roots = {imported.split(".")[0] for imported in imports_of(path, at_import=False)}
        assert other not in roots, name


def test_the_compiler_imports_downwards() -> None:
    """`cli → commands → pipeline → stages → everything else`; a command may use what is below the pipeline."""
    for name, targets in graph("flashgen", at_import=False).items():
        for target in targets:
            assert _layer(name) <= _layer(target), f"{name} imports {target}"


def _layer(name: str) -> int:
    head = [*name.split("."), "", ""][1]
    return next((index for index, layer in enumerate(GENERATOR_LAYERS) if head in layer), len(GENERATOR_LAYERS))


def test_a_stage_never_imports_another_stage() -> None:
    """What passes between them are values."""
    for name, targets in graph("flashgen", at_import=False).items():
        if name.startswith("flashgen.stages."):
            assert not [target for target in targets if target.startswith("flashgen.stages.")], name


def test_the_runtime_imports_downwards() -> None:
    """`server → transport`; `worker → transport, models → engine → loader → quantization → kernels`."""
    for name, targets in graph("flashgen_runtime", at_import=False).items():
        package = _package(name)
        if package not in RUNTIME_LAYERS:
            continue
        allowed = RUNTIME_LAYERS[package] | {package}
        for target in targets:
            other = _package(target)
            assert other not in RUNTIME_LAYERS or other in allowed, f"{name} imports {target}"


def _package(name: str) -> str:
    return [*name.split("."), ""][1]


def test_only_the_command_line_prints() -> None:
    """Everything else returns what is to be printed, or logs it."""
    for name, path in modules("flashgen"):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        prints = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert not prints or name == "flashgen.cli", name


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_api_side_runs_where_torch_is_not(module: str) -> None:
    """The API image carries no torch; importing it raises here."""
    program = f"""
import sys
for name in ("torch", "transformers", "safetensors"):
    sys.modules[name] = None
import flashgen_runtime.{module}
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
