"""The command line as a user meets it: exit codes, messages of at most three lines, nothing written, start-up time."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nni_bayes_nas.cli import main
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError, RunError

COMMANDS = ["run", "search", "report", "compress", "predict", "evaluate", "export", "list", "trial", "nnictl-env"]
# The limits are 1 s and 2 s on a quiet machine; the best of three tries forgives a busy one.
TRIES = 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to start commands in, with a small configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "small.yaml").write_text("search: {epochs: 4}\n")
    return tmp_path


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must be refused and returns its message."""
    before = sorted(folder.rglob("*"))
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) <= 3
    assert "Traceback" not in captured.err
    assert sorted(folder.rglob("*")) == before
    return captured.err


def fastest(arguments: list[str], cwd: Path) -> tuple[float, str]:
    times = []
    for _ in range(TRIES):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "nni_bayes_nas", *arguments], cwd=cwd, capture_output=True, text=True, check=True
        )
        times.append(time.perf_counter() - started)
    return min(times), done.stdout


def test_help_is_quick(tmp_path: Path) -> None:
    seconds, text = fastest(["--help"], tmp_path)
    assert all(command in text for command in COMMANDS)
    assert seconds <= 1.0


def test_list_is_quick_and_complete(tmp_path: Path) -> None:
    seconds, text = fastest(["list"], tmp_path)
    for name in ["hyper_darts", "regularized_darts", "cell", "chain", "digits", "mnist", "npz", "search_and_retrain"]:
        assert len(re.findall(rf"^  {name} +\S", text, re.MULTILINE)) == 1
    assert seconds <= 2.0


def test_a_reader_that_has_enough(tmp_path: Path) -> None:
    """`nni-bayes-nas list | true` ended in a BrokenPipeError."""
    code = (
        f"{sys.executable} -c 'import time, sys; from nni_bayes_nas.cli import main; time.sleep(0.3); main([\"list\"])'"
    )
    done = subprocess.run(["bash", "-c", f"{code} | true"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""


def test_the_process_ends_without_taking_the_interpreter_apart(tmp_path: Path) -> None:
    """Buffers and exit handlers are seen to; objects are left as they are."""
    code = """if True:
        import atexit, sys
        from nni_bayes_nas import cli
        class Kept:
            def __del__(self):
                print("taken apart", flush=True)
        kept = Kept()
        atexit.register(print, "handler")
        cli._COMMANDS["list"] = (lambda options: print("list") or 3, *cli._COMMANDS["list"][1:])
        sys.argv = ["nni-bayes-nas", "list"]
        cli.process()
    """
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (3, "list\nhandler\n", "")


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from nni_bayes_nas.cli import main; main(['list']);"
        "heavy = {'torch', 'nni', 'pytorch_lightning', 'matplotlib', 'numpy', 'sklearn', 'torchvision'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"example:\n  {'trialCommand: ' if command == 'trial' else ''}" in (text := capsys.readouterr().out)
    assert f"nni-bayes-nas {command}" in text.split("example:")[1]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert re.fullmatch(r"nni-bayes-nas \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["rnu", "small.yaml"], "did you mean `run`?"),
        (["run"], "CONFIG"),
        (["run", "nope.yaml"], "No such file or directory"),
        (["run", "."], "cannot be read"),
        (["run", "small.yaml", "--sed", "1"], "--sed"),
        (["run", "small.yaml", "--seed", "one"], "--seed"),
        (["run", "small.yaml", "--seed", "-1"], "`seed` must lie in"),
        (["run", "small.yaml", "--set", "search.epoch=3"], "did you mean `search.epochs`?"),
        (["run", "small.yaml", "--set", "search.epochs"], "key.path=value"),
        (["run", "small.yaml", "--set", "search.epochs=ten"], "whole number"),
        (["run", "small.yaml", "--set", "strategy.name=hyper_dart"], "did you mean `hyper_darts`?"),
        (["run", "small.yaml", "--set", "data.name=minst"], "did you mean `mnist`?"),
        (["run", "small.yaml", "--set", "space.name=my space:X"], "package.module:Attr"),
        (
            ["run", "small.yaml", "--set", "experiment.plan=x"],
            "known: architecture_prediction, compression, posterior_refinement, search",
        ),
        (["compress", "small.yaml", "--set", "compress.fractions=[1.0]"], "compress.fractions` must be shares"),
        (["compress", "small.yaml", "--set", "compress.knots=1"], "knots must be at least 2, got 1"),
        (["compress", "small.yaml", "--set", "compress.network=lenet"], "unknown network `lenet`"),
        (["compress", "small.yaml", "--set", "data.name=diabetes", "--set", "data.task=regression"], "is for classes"),
        (["run", "small.yaml", "--output", "small.yaml"], "is a file"),
        (["run", "small.yaml", "--output", "small.yaml/run"], "is a file"),
        (["search", "small.yaml", "--set", "search.epochs=0"], "at least 1"),
        (["report"], "RUN"),
        (["report", "."], "no summary.json"),
        (["report", "nowhere"], "no summary.json"),
        (["export", "."], "--architecture"),
        (["export", ".", "--architecture", "s0-lam-1"], "no summary.json"),
        (["export", ".", "--architecture", "s0-lam-1", "--format", "pt"], "did you mean `pt2`?"),
        (["export", ".", "--architecture", "s0-lam-1", "--seed", "one"], "--seed"),
    ],
)
def test_what_a_user_may_get_wrong(
    arguments: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(arguments, folder, capsys)


def stub(monkeypatch: pytest.MonkeyPatch, module: str, **functions: Any) -> None:
    """Puts functions in the place of a heavy module: what is tested is what the command hands over."""
    monkeypatch.setitem(sys.modules, f"nni_bayes_nas.{module}", SimpleNamespace(**functions))


def test_run_hands_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def run(config: Config, output: Path, resume: bool, command: str, code_directory: Path) -> int:
        seen.update(locals())
        return 1

    stub(monkeypatch, "experiment.runner", run=run)
    assert main(["run", "small.yaml", "--resume", "--seed", "3", "--set", "report.title=a b"]) == 1
    assert seen["config"].search.epochs == 4
    assert seen["config"].seed == 3
    assert seen["config"].report.title == "a b"
    assert seen["output"] == folder / "runs" / "small"
    assert seen["resume"] is True
    assert seen["command"] == "nni-bayes-nas run small.yaml --resume --seed 3 --set 'report.title=a b'"
    assert seen["code_directory"] == folder
    assert not (folder / "runs").exists()


def test_report_prints_the_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "summary.json").write_text(json.dumps({"schema": 1}))
    stub(monkeypatch, "report", write_report=lambda runs: [run / "report.html" for run in runs])
    assert main(["report", "a"]) == 0
    assert capsys.readouterr().out == "a/report.html\n"


def test_nnictl_env_is_quoted_for_the_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"NODE_OPTIONS": "--require /a b/it's.js", "OTHER": "$HOME `ls`"}
    stub(monkeypatch, "experiment.nni_compat", loopback_environment=lambda: values)
    assert main(["nnictl-env"]) == 0
    script = capsys.readouterr().out + '\nprintf "%s\\n%s" "$NODE_OPTIONS" "$OTHER"'
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == "\n".join(
        values.values()
    )


def test_sections_of_other_commands_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nni_bayes_nas.experiment.runner.run", lambda *arguments, **options: 0)
    text = "compress: {epochs: 3}\npredict: {tasks: 9}\n"
    (folder / "all.yaml").write_text(text)
    joint = "strategy: {name: dirichlet_darts, args: {weights: variational, weight_hypernet: piecewise_linear}}\n"
    (folder / "joint.yaml").write_text(text + joint)

    def told(command: str, file: str) -> list[str]:
        assert main([command, file]) == 0
        return re.findall("note: `(.*)` has no part in this run", capsys.readouterr().err)

    assert told("run", "all.yaml") == ["compress", "predict"] and told("run", "joint.yaml") == ["predict"]
    assert told("compress", "all.yaml") == told("predict", "all.yaml") == told("run", "small.yaml") == []


def test_an_output_that_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything heavy; whoever is root may write everywhere, so the answer of the system is given here."""
    (folder / "taken").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "taken" and access(path, mode))
    for command in ("run", "search", "compress", "predict"):
        said = refused([command, "small.yaml", "--output", "taken/deep/run"], folder, capsys)
        assert "`--output` must be writable" in said and "taken` is not" in said
    assert "`taken` must be writable: evaluation.json" in refused(["evaluate", "taken"], folder, capsys)
    (folder / "taken" / "summary.json").write_text("{}")
    assert "`taken` must be writable: report.html" in refused(["report", "taken"], folder, capsys)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ConfigError("rule\nvalue\nremedy\nmore"), 2, "error: rule\nvalue\nremedy\n"),
        (RunError("the manager died:\n  its cause"), 1, "error: the manager died: its cause\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    says: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*args: Any, **kwargs: Any) -> int:
        raise error

    stub(monkeypatch, "experiment.runner", run=run)
    assert main(["run", "small.yaml"]) == code
    assert capsys.readouterr().err == says


def test_an_error_that_nobody_foresaw_keeps_its_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: Any, **kwargs: Any) -> int:
        raise ZeroDivisionError

    stub(monkeypatch, "experiment.runner", run=run)
    with pytest.raises(ZeroDivisionError):
        main(["run", "small.yaml"])


def test_the_current_folder_is_importable_but_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(folder))])
    assert main(["list"]) == 0
    assert sys.path[-1] == str(folder)
    main(["list"])
    assert sys.path.count(str(folder)) == 1


def test_module_and_console_script_agree(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("nni-bayes-nas")
    if not script.exists():
        pytest.skip("the package is not installed: there is no console script")
    environment = {**os.environ, "COLUMNS": "80"}
    outputs = [
        subprocess.run([*command, "run", "no.yaml"], cwd=tmp_path, capture_output=True, text=True, env=environment)
        for command in ([str(script)], [sys.executable, "-m", "nni_bayes_nas"])
    ]
    assert outputs[0].stderr == outputs[1].stderr
    assert [done.returncode for done in outputs] == [2, 2]
