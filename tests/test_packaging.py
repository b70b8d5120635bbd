"""The package is what its metadata says, and its parts import one way."""

import ast
import importlib
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import persist_sb3

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "persist_sb3"


@pytest.mark.parametrize("door", ["wrappers", "callbacks", "hyperparams"])
def test_the_root_folders_are_links_that_refuse_to_be_imported(door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    link = ROOT / door
    assert link.is_symlink()
    assert link.resolve() == PACKAGE / door
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(ImportError, match=re.escape(f"import persist_sb3.{door} instead")):
        importlib.import_module(door)
    assert door not in sys.modules
    assert importlib.import_module(f"persist_sb3.{door}").__name__ == f"persist_sb3.{door}"


def test_metadata_and_typing_marker() -> None:
    assert metadata.version("persist-sb3") == persist_sb3.__version__
    assert metadata.metadata("persist-sb3")["License-Expression"] == "MIT"
    assert (PACKAGE / "py.typed").is_file()


def test_every_requirement_is_pinned_to_a_version_that_satisfies_it() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            pins[canonicalize_name(pin.name)] = pin.specifier
    required = [Requirement(line) for line in metadata.requires("persist-sb3") or []]
    required = [one for one in required if canonicalize_name(one.name) != "persist-sb3"]
    assert len(required) > 10
    for one in required:
        (tested,) = pins[canonicalize_name(one.name)]
        assert tested.operator == "=="
        assert one.specifier.contains(tested.version), f"{one} against {tested}"


def _imports(module: str) -> set[str]:
    """
    :param module: a module of the package
    :return: what it imports anywhere in its code, ``from a import b`` as ``a.b``
    """
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in PACKAGE.rglob("*.py")
}


def _below(part: str) -> set[str]:
    """
    :param part: a module or folder of the package
    :return: every other module of the package that it needs, and that those need
    """
    seen: set[str] = set()
    found = {module for module in MODULES if f"{module}.".startswith(f"persist_sb3.{part}.")}
    inside = set(found)
    while found:
        seen |= found
        imported = {name for module in found for name in _imports(module)}
        found = {module for module in MODULES - seen if {module} & imported or _imported_from(module, imported)}
    return seen - inside - {"persist_sb3"}


def _imported_from(module: str, imported: set[str]) -> bool:
    return any(name.rpartition(".")[0] == module for name in imported)


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("envs", {"wrappers", "callbacks", "zoo", "train", "enjoy", "hyperparams"}),
        ("config", {"wrappers", "callbacks", "zoo", "train", "enjoy", "hyperparams"}),
        ("state", {"wrappers", "callbacks", "zoo", "train", "enjoy", "hyperparams"}),
        ("wrappers", {"callbacks", "zoo", "train", "enjoy", "hyperparams"}),
        ("callbacks", {"zoo", "train", "enjoy", "hyperparams"}),
    ],
)
def test_imports_point_one_way(part: str, forbidden: set[str]) -> None:
    """``train.py, hyperparams -> callbacks -> wrappers -> the rest``; of SB3, what its algorithms have in common."""
    for module in _below(part):
        assert module.split(".")[1] not in forbidden, f"persist_sb3.{part} needs {module}"
        for name in _imports(module):
            assert not name.startswith(f"persist_sb3.{part}."), f"{module}, below persist_sb3.{part}, imports {name}"
            if name.startswith(("stable_baselines3.", "sb3_contrib.", "rl_zoo3.")):
                assert name.split(".")[1] == "common", f"{module} imports {name}"


def test_the_walk_over_imports_finds_them() -> None:
    assert {"persist_sb3.viability", "persist_sb3.batch", "persist_sb3._doors"} <= _below("wrappers")
    assert "persist_sb3.wrappers.adapters" in _below("callbacks")
