"""What is installed is what lies in the checkout, under the right import names, also beside hostile folders."""

import configparser
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKS = ["strategies", "search_spaces"]


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_every_subpackage_is_listed(setup: configparser.ConfigParser) -> None:
    found = set()
    for path in (ROOT / "nni_bayes_nas").rglob("__init__.py"):
        parts = path.parent.relative_to(ROOT).parts
        if len(parts) < 2 or parts[1] not in LINKS:
            found.add(".".join(parts))
    for tree in LINKS:
        for path in (ROOT / tree).rglob("__init__.py"):
            found.add(".".join(("nni_bayes_nas", *path.parent.relative_to(ROOT).parts)))
    assert set(setup["options"]["packages"].split()) == found


@pytest.mark.parametrize("name", LINKS)
def test_links(name: str) -> None:
    link = ROOT / "nni_bayes_nas" / name
    if link.is_symlink():
        assert os.readlink(link) == f"../{name}"
        assert link.resolve() == ROOT / name
    else:
        # A checkout without symbolic links holds small text files; the mapping of setup.cfg takes over.
        assert link.read_text(encoding="utf-8") == f"../{name}"


@pytest.mark.parametrize("name", LINKS)
def test_guard_of_the_import_name(name: str, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {name}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"ImportError: import nni_bayes_nas.{name}, not {name}" in done.stderr


def test_data_files_are_declared(setup: configparser.ConfigParser) -> None:
    """Each file of the package that is not Python matches a pattern: the wheel would lack it otherwise."""
    for path in (ROOT / "nni_bayes_nas").rglob("*"):
        relative = path.relative_to(ROOT)
        if (
            path.suffix in {".py", ".pyc"}
            or not path.is_file()
            or (len(relative.parts) > 1 and relative.parts[1] in LINKS)
        ):
            continue
        package = ".".join(relative.parent.parts)
        patterns = setup["options.package_data"].get(package, "").split()
        assert any(path.match(pattern) for pattern in patterns), f"{relative} is in no package_data"


def test_constraints_pin_every_requirement(setup: configparser.ConfigParser) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 for line in pins)
    pinned = {line.partition("==")[0].lower() for line in pins}
    wanted = [*setup["options"]["install_requires"].split("\n"), *setup["options.extras_require"]["dev"].split("\n")]
    for line in wanted:
        name = line.strip()
        if name and not name.startswith("#"):
            for separator in "<>=":
                name = name.partition(separator)[0]
            assert name.strip().lower() in pinned, f"{name} is not in constraints.txt"


def test_no_registry_is_named() -> None:
    for name in ["Makefile", ".ci/run", "setup.cfg", "pyproject.toml", "constraints.txt", ".pre-commit-config.yaml"]:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "index-url" not in text and "index_url" not in text and "pypi.org" not in text


def test_build_system_and_ci() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["build-system"]["build-backend"] == "setuptools.build_meta"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def run(command: list[str], cwd: Path, **environment: str) -> str:
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**variables, **environment})
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_wheel_beside_hostile_folders(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    # Built from a copy: a build leaves build/ and *.egg-info behind.
    for name in ["setup.cfg", "pyproject.toml", "README.md", "LICENSE", "nni_bayes_nas", *LINKS]:
        if (ROOT / name).exists():
            run(["cp", "-a", str(ROOT / name), str(source)], tmp_path)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)], tmp_path)
    (wheel,) = tmp_path.glob("*.whl")

    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    python = str(environment / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    run(pip, tmp_path)
    # The dependencies come from this environment. A path in a .pth is only appended: the .pth of an editable
    # installation there is not read, and the wheel comes first.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    hostile = tmp_path / "hostile"
    for name in LINKS:
        (hostile / name).mkdir(parents=True)
        (hostile / name / "__init__.py").write_text("raise ImportError('the folder of the user')\n", encoding="utf-8")

    where = run([python, "-c", "import nni_bayes_nas; print(nni_bayes_nas.__file__)"], hostile)
    assert Path(where.strip()).is_relative_to(site)
    listed = run([str(environment / "bin" / "nni-bayes-nas"), "list"], hostile)
    assert "hyper_darts" in listed
    assert run([python, "-m", "nni_bayes_nas", "list"], hostile) == listed
    for pattern in ["py.typed", "report/*.html", "experiment/*.js"]:
        assert list((site / "nni_bayes_nas").glob(pattern)), f"the wheel lacks {pattern}"
    code = (
        "import pickle; from nni_bayes_nas.registry import *;"
        "found = [resolve('x', name, r) for r in (STRATEGIES, SEARCH_SPACES, PLANS, DATA_SETS) for name in r];"
        "assert pickle.loads(pickle.dumps(found)) == found;"
        "print(*(item.__module__ for item in found))"
    )
    modules = run([python, "-W", "ignore", "-c", code], hostile).split()
    assert all(module.startswith("nni_bayes_nas.") for module in modules[-8:])
