"""The shape of the source: who may import whom, how long a file may be, where NNI may be spoken."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TREES = {
    "nni_bayes_nas": ROOT / "nni_bayes_nas",
    "strategies": ROOT / "strategies",
    "search_spaces": ROOT / "search_spaces",
}
PLUG_INS = ("strategies", "search_spaces")

# A part may import the parts of smaller rank; parts of the same rank know nothing of each other, but for rank 0.
RANKS = {
    "errors": 0,
    "lockstep": 0,
    "precision": 0,
    "fused": 0,
    "coercion": 0,
    "config": 0,
    "config_plans": 0,
    "config_sections": 0,
    "variants": 0,
    "yaml_text": 0,
    "registry": 0,
    "architecture": 0,
    "bayes": 1,
    "complexity": 2,
    "layers": 2,
    "compression": 3,
    "optim": 3,
    "prediction": 3,
    "search_spaces": 4,
    "strategies": 4,
    "experiment": 5,
    "report": 6,
    "cli": 7,
    "compliance": 7,
    "__main__": 8,
}
# Of the experiment, these parts may read only how a run folder is written.
READERS = {"report"}
SPEAKS_NNI = {"search_spaces", "strategies", "experiment", "compliance"}


def source_files() -> Iterator[tuple[str, Path]]:
    """Every source file with its import name; the links of the package are not followed."""
    for tree, folder in TREES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if tree == "nni_bayes_nas" and parts[0] in PLUG_INS:
                continue
            prefix = ("nni_bayes_nas",) if tree == "nni_bayes_nas" else ("nni_bayes_nas", tree)
            yield ".".join((*prefix, *parts)), path


FILES = dict(source_files())


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Each imported module of a file, with the level of a relative import (0: absolute)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, 0
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield module, node.level
            if node.level == 0 and module.split(".")[0] == "nni_bayes_nas":
                # `from nni_bayes_nas import strategies` names a module in the list of names.
                for alias in node.names:
                    yield f"{module}.{alias.name}", 0


def part_of(module: str) -> str:
    """The part of the package that a module belongs to; the package itself is ``""``."""
    names = module.split(".")
    return names[1] if len(names) > 1 else ""


def test_files_were_found() -> None:
    assert {part_of(name) for name in FILES} >= {"errors", "config", "registry", "cli"}


@pytest.mark.parametrize("name", FILES)
def test_import_order(name: str) -> None:
    part = part_of(name)
    if part == "__init__":
        assert not list(imports(FILES[name])), "the package itself imports nothing"
        return
    assert part in RANKS, f"give `{part}` a rank in this test, and a line in the design"
    for module, level in imports(FILES[name]):
        if level > 0:
            assert part in PLUG_INS, f"{name}: imports are absolute outside strategies/ and search_spaces/"
            depth = len(name.split(".")) - 2
            assert level <= depth, f"{name}: a relative import leaves {part}/"
            continue
        if module.split(".")[0] in PLUG_INS:
            pytest.fail(f"{name} imports {module}: its import name is nni_bayes_nas.{module}")
        if module.split(".")[0] != "nni_bayes_nas":
            continue
        other = part_of(module)
        if other not in RANKS:
            continue
        assert other not in PLUG_INS, f"{name} imports {module}: plug-ins are resolved from the registry"
        if other == part:
            continue
        assert RANKS[other] < RANKS[part] or RANKS[other] == RANKS[part] == 0, f"{name} must not import {module}"
        if part in READERS and other == "experiment":
            assert module == "nni_bayes_nas.experiment" or module.startswith("nni_bayes_nas.experiment.record"), (
                f"{name} may read run folders through experiment.record only, not {module}"
            )


@pytest.mark.parametrize("name", [name for name in FILES if part_of(name) not in SPEAKS_NNI])
def test_nni_stays_in_its_folders(name: str) -> None:
    assert not [module for module, _ in imports(FILES[name]) if module.split(".")[0] == "nni"]


@pytest.mark.parametrize(
    "path",
    sorted(
        path.relative_to(ROOT).as_posix()
        for folder in (*TREES.values(), ROOT / "tests", ROOT / "examples")
        for path in folder.rglob("*.py")
        if not path.relative_to(ROOT).as_posix().startswith(("nni_bayes_nas/strategies", "nni_bayes_nas/search_spaces"))
    ),
)
def test_files_stay_short_and_named_after_a_thing(path: str) -> None:
    with (ROOT / path).open(encoding="utf-8") as lines:
        assert sum(1 for _ in lines) <= 400
    assert Path(path).stem not in {"utils", "helpers", "common", "misc"}


def test_tests_are_no_package() -> None:
    """An __init__.py in tests/strategies would shadow the folder of that name."""
    assert not list((ROOT / "tests").rglob("__init__.py"))
