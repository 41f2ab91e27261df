"""The house rules that a program can check: who may import what, and habits of library code.

The table below is the one of DESIGN.md. Imports are read from the syntax tree, so lazy imports inside functions and
imports for type checkers count as well.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 400

TORCH_STACK = {"torch", "diffusers", "transformers", "peft", "accelerate", "safetensors"}

MAY_IMPORT: dict[str, set[str]] = {
    "foundation": {"numpy"},
    "arcflow": {
        "foundation", *TORCH_STACK,
        "huggingface_hub", "matplotlib", "msgspec", "numpy", "PIL", "pyarrow", "rich", "scipy",
        "tensorboard", "tokenizers", "torchao", "wandb",
    },
    "engines": {"foundation", "msgspec", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"},
    "export": {
        "foundation", "arcflow", "engines", *TORCH_STACK,
        "filelock", "huggingface_hub", "matplotlib", "ml_dtypes", "msgspec", "numpy", "onnx", "onnx_ir",
        "onnxruntime", "onnxscript", "rich", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "tokenizers",
    },
    "runtime": {
        "foundation", "engines",
        "arcflow_native", "cuda", "msgspec", "numpy", "onnx", "onnxruntime", "PIL", "tensorrt", "tokenizers",
    },
    "integrations": {
        "foundation", "engines", "runtime",
        "comfy", "folder_paths", "msgspec", "numpy", "PIL", "ray", "starlette", "torch", "triton_python_backend_utils",
    },
}  # fmt: skip
"""What each package may import besides itself and the standard library."""

MAY_START: dict[str, set[str]] = {
    "engines": {"export.parity", "runtime.verify"},
    "export": {"runtime.verify"},
    "runtime": {"arcflow.baseline"},
}
"""Which commands of another package each may run, in a process of its own (DESIGN.md, Commands hand over)."""

PRINTS = {Path("foundation/cli.py")}
"""Files besides command modules that speak to the user: the guard of every command."""


@cache
def files_of(package: str) -> tuple[Path, ...]:
    return tuple(sorted((ROOT / package).rglob("*.py")))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


CXX_FOLDERS = ("runtime/native", "examples", "tests/native")
CXX_SUFFIXES = {".c", ".h", ".cpp", ".hpp", ".cu", ".cuh"}
CXX_NAMED = re.compile(
    r"(?<![\w/.<])((?:abi|cli|core|cuda|hosts|server|tests|engines|export|runtime)/[\w/]+\.(?:py|h|hpp|cpp|cu|cuh))\b"
)
"""Files of this tree, from its root or from runtime/native, as includes and comments name them."""
CXX = [
    pytest.param(path, id=path.relative_to(ROOT).as_posix())
    for folder in CXX_FOLDERS
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in CXX_SUFFIXES
]
LIBRARY = [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for p in MAY_IMPORT for path in files_of(p)]


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported absolutely, ``import_module("name")`` included."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield node.lineno, module
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
                if _name(func) in {"__import__", "import_module"}:
                    yield node.lineno, name


def module_name(path: Path) -> str:
    """The dotted name of a file: a package's own for its ``__init__.py``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path) -> Iterator[str]:
    """Dotted names that a file may take: all that :func:`imported` names, and each name taken ``from`` one."""
    tree = tree_of(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            taken = {f"{node.module}.{alias.name}" for alias in node.names}
            files = {name for name in taken if is_module(name)}
            yield from files
            if len(files) < len(taken):
                yield node.module
    yield from (name for _, name in imported(tree) if not is_module(f"{name}.__init__"))


def is_module(name: str) -> bool:
    """Whether there is a file or a folder of that dotted name."""
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@cache
def defined_in(name: str) -> frozenset[str]:
    """What a module of this tree has at its top, its submodules among it."""
    path = ROOT.joinpath(*name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = {child.stem for child in path.iterdir()} if path.is_dir() else set()
    left: list[ast.AST] = list(tree_of(file).body) if file.is_file() else []
    while left:
        node = left.pop()
        match node:
            case ast.FunctionDef(name=made) | ast.AsyncFunctionDef(name=made) | ast.ClassDef(name=made):
                found.add(made)  # What is inside it is not at the top.
            case ast.Name(id=made, ctx=ast.Store()):
                found.add(made)
            case ast.ImportFrom(names=names) | ast.Import(names=names):
                found |= {alias.asname or alias.name for alias in names}
            case _:
                left += ast.iter_child_nodes(node)
    return frozenset(found)


def is_command(tree: ast.Module) -> bool:
    """Whether the module runs as a program: it has an ``if __name__ == "__main__":``."""
    return any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)


def calls(tree: ast.AST, names: set[str]) -> list[int]:
    """Lines that call one of ``names`` (the last part of a dotted name counts for ``sys.exit``)."""
    return [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) in names]


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def test_every_package_is_in_the_table() -> None:
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert found <= set(MAY_IMPORT), "a new package needs a row in MAY_IMPORT and in DESIGN.md"


@pytest.mark.parametrize("path", LIBRARY)
def test_imports_flow_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[package] | {package} | set(sys.stdlib_module_names)
    wrong = [f"{path}:{line} {name}" for line, name in imported(tree_of(path)) if name.split(".")[0] not in allowed]
    assert not wrong, f"{package}/ may not import these (see DESIGN.md, who may import what)"


def started(tree: ast.AST) -> Iterator[str]:
    """Modules that are run as commands: by ``hand_over("name")``, or by a list that holds ``"-m", "name"``."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=func, args=[first, *_]) if _name(func) == "hand_over":
                yield from (
                    n.value for n in ast.walk(first) if isinstance(n, ast.Constant) and isinstance(n.value, str)
                )
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                words = [part.value if isinstance(part, ast.Constant) else None for part in parts]
                yield from (name for flag, name in pairwise(words) if flag == "-m" and isinstance(name, str))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_runs_no_other_command_of_another(package: str) -> None:
    found = {name for path in files_of(package) for name in started(tree_of(path)) if name.split(".")[0] in MAY_IMPORT}
    assert {name for name in found if name.split(".")[0] != package} == MAY_START.get(package, set())


def test_the_table_itself_flows_one_way() -> None:
    order = ["foundation", "arcflow", "engines", "export", "runtime", "integrations"]
    for place, package in enumerate(order):
        assert not MAY_IMPORT[package] & set(order[place:])
    assert not MAY_IMPORT["runtime"] & (TORCH_STACK | {"arcflow", "export"})


def imports_of(package: str) -> dict[str, set[str]]:
    """What each module of a package imports of that package."""
    modules = {module_name(path): path for path in files_of(package)}
    return {name: {m for m in imported_modules(path) if m in modules} - {name} for name, path in modules.items()}


def reject_circle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other, the first the second and so on: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("folder", [*MAY_IMPORT, "benchmarks", "examples", "gpu", "scripts", "tests"])
def test_what_is_imported_from_this_tree_is_there(folder: str) -> None:
    """Also what a lazy import names, which only a run would find out."""
    own = {*MAY_IMPORT, "benchmarks", "gpu", "scripts", "tests"}
    missing = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.module}.{alias.name}"
        for path in files_of(folder)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and node.module and not node.level and node.module.split(".")[0] in own
        for alias in node.names
        if alias.name not in defined_in(node.module)
    ]
    assert not missing


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_modules_import_each_other_in_no_circle(package: str) -> None:
    reject_circle(imports_of(package))


@pytest.mark.parametrize("package", ["arcflow", "export"])
def test_rooms_import_each_other_in_no_circle(package: str) -> None:
    """A room is a folder inside a package; each file beside the rooms stands for itself."""

    def room(name: str) -> str:
        parent = name.rpartition(".")[0]
        return name if parent in ("", package) else parent

    graph: dict[str, set[str]] = {}
    for name, others in imports_of(package).items():
        graph.setdefault(room(name), set()).update({room(other) for other in others} - {room(name)})
    reject_circle(graph)


@pytest.mark.parametrize("path", LIBRARY)
def test_library_code_does_not_assert(path: Path) -> None:
    lines = [node.lineno for node in ast.walk(tree_of(path)) if isinstance(node, ast.Assert)]
    assert not lines, f"{path}: raise an ArcFlowError instead (python -O drops assert)"


@pytest.mark.parametrize("path", LIBRARY)
def test_library_code_neither_prints_nor_exits(path: Path) -> None:
    tree = tree_of(path)
    if is_command(tree) or path.relative_to(ROOT) in PRINTS:
        return
    lines = calls(tree, {"print", "exit", "quit", "sys.exit", "os._exit", "SystemExit"})
    assert not lines, f"{path}: return a value, raise an ArcFlowError or take a callback"


@pytest.mark.parametrize("path", LIBRARY)
def test_files_hold_one_concept(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines: split it by concept"


@pytest.mark.parametrize("path", LIBRARY)
def test_modules_say_what_they_are(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)) or not tree_of(path).body, f"{path} has no module docstring"


@pytest.mark.parametrize("path", CXX)
def test_cxx_files_hold_one_concept_and_say_which(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES, f"{path} has {len(lines)} lines: split it by concept"
    header = path.with_suffix(".hpp")
    own = path != header and header.exists() and lines[0].endswith(f'{header.name}"')
    assert own or lines[0].startswith(("// ", "/* ")), f"{path} opens with no comment on what it is for, nor its header"


@pytest.mark.parametrize("path", CXX)
def test_cxx_files_name_files_that_exist(path: Path) -> None:
    native = ROOT / "runtime" / "native"
    named = CXX_NAMED.findall(path.read_text(encoding="utf-8"))
    missing = [name for name in named if not any((base / name).exists() for base in (ROOT, native, native / "include"))]
    assert not missing, f"{path} names files that are not there"


@pytest.mark.parametrize(
    "house", ["arcflow", "engines", "export", "runtime", "runtime/native/core", "tests/export", "tests/runtime"]
)
def test_rooms_are_small(house: str) -> None:
    code = {".py", ".cpp", ".hpp", ".h", ".cu", ".cuh"}
    files = {path for path in (ROOT / house).rglob("*") if path.suffix in code}
    if house == "runtime":
        files -= set((ROOT / house / "native").rglob("*"))
    rooms = Counter(path.parent.relative_to(ROOT).as_posix() for path in files)
    crowded = [f"{room} has {count} files" for room, count in rooms.items() if count > 16]
    assert rooms and not crowded, "split it by purpose"


def test_the_reader_of_commands_sees_every_form() -> None:
    source = "hand_over('a.b' if x else 'c.d', 'e')\nrun([python, '-m', 'f.g', 'h'])\nrun(('-m', name))"
    assert sorted(started(ast.parse(source))) == ["a.b", "c.d", "f.g"]


def test_the_reader_of_imports_sees_every_form() -> None:
    source = "import a.b\nfrom c import d\nfrom . import e\ndef f():\n    import g\n    import_module('h')\n"
    assert sorted(name for _, name in imported(ast.parse(source))) == ["a.b", "c", "g", "h"]
