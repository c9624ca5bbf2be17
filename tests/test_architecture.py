"""Import arrows, contract files, folder descriptions and module sizes, as docs/architecture.md promises them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastsam2.contracts import GRAPHS
from tests.conftest import ENTRY_POINTS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("export", "engines", "runtime", "kernels", "benchmarks", "training")
MAY_IMPORT = {
    "export": ("kernels",),
    "engines": ("kernels",),
    "runtime": ("kernels",),
    "kernels": (),
    "benchmarks": ("engines", "export", "kernels", "runtime"),
    "training": ("benchmarks", "export", "kernels", "runtime"),
}
EXPORTER_ONLY = ("torch", "sam2", "onnx")
NEED_TORCH = ("export", "training")
EXCEPTIONS = {  # file -> the one folder more that it imports
    "benchmarks/pruning.py": "training",  # measures what training makes, on its clips
    "benchmarks/text_cue.py": "training",
    "runtime/gpu/tensorrt.py": "engines",  # runs what was built
}
IMPORTING = re.compile(r"\b(import_module|__import__)$")
MAX_LINES = 450


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    at_module_level: bool


def imports_of(source: str, package: str) -> Iterator[Import]:
    """Every import statement and `import_module("literal")`. `from a import b` counts as a.b, because b may be a module."""

    def visit(node: ast.AST, at_module_level: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_module_level) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (Import(f"{base}.{alias.name}", node.lineno, at_module_level) for alias in node.names)
        elif isinstance(node, ast.Call) and IMPORTING.search(ast.unparse(node.func)) and isinstance(node.args[0], ast.Constant):
            yield Import(str(node.args[0].value), node.lineno, at_module_level)
        inside = at_module_level and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        type_checking = isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING"
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visit(child, inside and not (type_checking and name == "body"))

    return visit(ast.parse(source), True)


def is_within(module: str, parent: str) -> bool:
    return module == parent or module.startswith(parent + ".")


def modules_in(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports_in(path: Path) -> list[Import]:
    relative = path.relative_to(ROOT)
    parts = relative.parent.parts if relative.parts[0] == "fastsam2" else ("fastsam2", *relative.parent.parts)
    return list(imports_of(path.read_text(encoding="utf-8"), ".".join(parts)))


def complaints(path: Path, forbidden: tuple[str, ...], *, module_level_only: bool = False) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{found.line} imports {found.module}"
        for found in imports_in(path)
        if any(is_within(found.module, name) for name in forbidden) and (found.at_module_level or not module_level_only)
    ]


def test_import_finder() -> None:
    source = """
import torch.nn as nn, onnxruntime
from typing import TYPE_CHECKING
from fastsam2 import runtime
from .wrappers import mask
from ..kernels import reference
if TYPE_CHECKING:
    import onnx
else:
    import a
class C:
    import b
def f():
    import sam2
    importlib.import_module("late")
"""
    found = {i.module: i.at_module_level for i in imports_of(source, "fastsam2.export")}
    assert found == {
        "torch.nn": True,
        "onnxruntime": True,
        "typing.TYPE_CHECKING": True,
        "fastsam2.runtime": True,
        "fastsam2.export.wrappers.mask": True,
        "fastsam2.kernels.reference": True,
        "onnx": False,
        "a": True,
        "b": True,
        "sam2": False,
        "late": False,
    }
    assert is_within("onnx.helper", "onnx")
    assert not is_within("onnxruntime", "onnx")


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_only_where_arrows_point(folder: str) -> None:
    modules = modules_in(folder)
    assert modules, f"{folder}/ has no modules: the test looks in the wrong place"
    forbidden = tuple(f"fastsam2.{other}" for other in FOLDERS if other != folder and other not in MAY_IMPORT[folder])
    forbidden += tuple(f"fastsam2.{name}" for name in ENTRY_POINTS)
    found = {path: complaints(path, forbidden) for path in modules}
    more = {ROOT / name: f"imports fastsam2.{folder}." for name, folder in EXCEPTIONS.items()}
    assert [c for path, own in found.items() for c in own if not (path in more and more[path] in c)] == []


def test_runtime_and_kernels_know_nothing_of_the_exporters_packages() -> None:
    modules = [*modules_in("runtime"), *modules_in("kernels")]
    assert [c for path in modules for c in complaints(path, EXPORTER_ONLY)] == []


def test_kernels_import_nothing_of_ours_but_errors() -> None:
    ours = [
        f"{path.relative_to(ROOT)}:{found.line} imports {found.module}"
        for path in modules_in("kernels")
        for found in imports_in(path)
        if is_within(found.module, "fastsam2")
        and not is_within(found.module, "fastsam2.errors")
        and not is_within(found.module, "fastsam2.kernels")
    ]
    assert ours == []


def test_shared_ground_imports_no_folder() -> None:
    shared = [path for path in sorted((ROOT / "fastsam2").glob("*.py")) if path.stem not in ("__init__", *ENTRY_POINTS)]
    assert ROOT / "fastsam2" / "contracts.py" in shared
    forbidden = (*(f"fastsam2.{folder}" for folder in FOLDERS), *EXPORTER_ONLY)
    assert [c for path in shared for c in complaints(path, forbidden)] == []


def test_exporters_packages_are_imported_late_outside_export() -> None:
    folders = [folder for folder in FOLDERS if folder not in NEED_TORCH]
    modules = [*(ROOT / "fastsam2").glob("*.py"), *(path for folder in folders for path in modules_in(folder))]
    assert [c for path in modules for c in complaints(path, EXPORTER_ONLY, module_level_only=True)] == []


def contract_files() -> list[str]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("| contract | decided in |")[1].split("\n\n")[0]
    rows = [line.strip().strip("|").split("|") for line in table.splitlines() if line.startswith("|") and "---" not in line]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row[1])]


def test_contract_table_is_read() -> None:
    assert {"fastsam2/contracts.py", "export/wrappers/<graph>.py", "tests/parity/thresholds.toml"} <= set(contract_files())


@pytest.mark.parametrize("name", contract_files())
def test_contract_file_exists(name: str) -> None:
    assert list(ROOT.glob(re.sub(r"<\w+>", "[!_]*", name))), f"docs/architecture.md names {name}, which does not exist"


def test_every_graph_has_its_wrapper() -> None:
    wrappers = {path.stem for path in (ROOT / "export" / "wrappers").glob("*.py")}
    assert {role.value for role in GRAPHS} <= wrappers


@pytest.mark.parametrize("folder", [*FOLDERS, "tests"])
def test_folder_has_a_readme(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert len(text.splitlines()) > 3


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_is_importable_through_its_link(folder: str) -> None:
    assert (ROOT / "fastsam2" / folder).resolve() == ROOT / folder


def test_modules_stay_readable() -> None:
    everything = [path for folder in (*FOLDERS, "tests") for path in modules_in(folder)] + list((ROOT / "fastsam2").glob("*.py"))
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in everything}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}
