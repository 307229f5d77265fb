"""The command line ``nni-bayes-nas``.

Exit codes: 0 done; 2 the user's mistake (at most three lines, nothing written); 128 + n a search in this process was
stopped by signal n (130: Ctrl-C); 1 anything else, also a run that was stopped and can be resumed.
Only what a command needs is imported, and only when it runs: torch alone takes seconds.
"""

import argparse
import atexit
import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from nni_bayes_nas import __version__
from nni_bayes_nas.coercion import closest
from nni_bayes_nas.config import Config, load_config
from nni_bayes_nas.errors import ConfigError, NniBayesNasError, StoppedError
from nni_bayes_nas.experiment.record import require_writable
from nni_bayes_nas.registry import DATA_SETS, NETWORKS, PLANS, SEARCH_SPACES, STRATEGIES, Registry, check_names
from nni_bayes_nas.yaml_text import parse_yaml

PROGRAM = "nni-bayes-nas"


def process() -> NoReturn:
    """The process of the command: ``main``, then out, without taking the interpreter apart.

    That takes more than a second where torch and Lightning were imported, and a run ends as many processes as it has
    trials.
    """
    code = main()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; ``argv`` defaults to the arguments of the process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    try:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in _COMMANDS:
            raise ConfigError(f"unknown command `{arguments[0]}`, {closest(arguments[0], _COMMANDS)}")
        options = parser.parse_args(arguments)
        _add_current_folder()
        options.command_line = shlex.join([PROGRAM, *arguments])
        command: Callable[[argparse.Namespace], int] = options.function
        return command(options)
    except ConfigError as error:
        _print_error(error, lines=3)
        return 2
    except StoppedError as error:
        _print_error(error, lines=2)
        return error.exit_code
    except NniBayesNasError as error:
        _print_error(error, lines=1)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    config, output = _configuration(options)
    for note in _unused_sections(options, config):
        print(f"note: {note}", file=sys.stderr, flush=True)
    from nni_bayes_nas.experiment.runner import run

    return run(
        config,
        output=output,
        resume=options.resume,
        command=options.command_line,
        code_directory=Path.cwd(),
    )


def _compress(options: argparse.Namespace) -> int:
    options.set.append("experiment.plan=compression")
    return _run(options)


def _predict(options: argparse.Namespace) -> int:
    options.set.append("experiment.plan=architecture_prediction")
    return _run(options)


def _search(options: argparse.Namespace) -> int:
    config, output = _configuration(options)
    from nni_bayes_nas.experiment.in_process import search_in_process
    from nni_bayes_nas.report import write_report

    search_in_process(config, output=output, resume=options.resume, command=options.command_line)
    return _print_lines(str(path) for path in write_report([output]))


def _report(options: argparse.Namespace) -> int:
    folders = [Path(folder) for folder in options.runs]
    for folder in folders:
        if not (folder / "summary.json").is_file():
            raise ConfigError(f"`{folder}` is no run folder: it has no summary.json\ngive what `{PROGRAM} run` wrote")
        require_writable(folder, "report.html")
    from nni_bayes_nas.report import write_report

    return _print_lines(str(path) for path in write_report(folders))


def _evaluate(options: argparse.Namespace) -> int:
    from nni_bayes_nas.experiment.evaluate import Settings, evaluate
    from nni_bayes_nas.report import write_report

    given: dict[str, Any] = {}
    for name in ("attacks", "epsilons", "damages", "objects", "seed"):
        value = getattr(options, name)
        if value is not None:
            given[name] = tuple(value) if isinstance(value, list) else value
    settings = Settings(**given)
    run = Path(options.run)
    require_writable(run, "evaluation.json")
    written = evaluate(run, settings, options.architecture, _progress)
    return _print_lines([str(written), *(str(path) for path in write_report([run]))])


def _progress(networks: list[Any]) -> Iterable[Any]:
    from rich.console import Console
    from rich.progress import track

    return track(networks, "networks", console=Console(stderr=True))


def _export(options: argparse.Namespace) -> int:
    from nni_bayes_nas.experiment.export import export, export_compressed

    run, shared = (
        Path(options.run),
        {
            "output": Path(options.output) if options.output else None,
            "standardized": options.standardized_input,
            "tolerance": options.tolerance,
        },
    )
    others: dict[str, Any] = {"--seed": options.seed}
    if options.compressed is None:
        others = {"--lambda": options.lam, "--fraction": options.fraction, "--trained-on": options.trained_on or None}
    if wrong := [name for name, value in others.items() if value is not None]:
        has, goes = ("--compressed", "--architecture") if options.compressed else ("--architecture", "--compressed")
        raise ConfigError(f"`{wrong[0]}` must go with {goes}, got it with {has}\nleave it out")
    if options.compressed is not None:
        given = {"lam": options.lam, "fraction": options.fraction, "trained_on": options.trained_on}
        exported = export_compressed(run, options.compressed, options.format, **given, **shared)
    else:
        exported = export(run, options.architecture, options.format, seed=options.seed, **shared)
    return _print_lines(exported.lines())


def _list(options: argparse.Namespace) -> int:
    sections: dict[str, Registry] = {
        "strategies (strategy.name)": STRATEGIES,
        "search spaces (space.name)": SEARCH_SPACES,
        "data sets (data.name)": DATA_SETS,
        "plans (experiment.plan)": PLANS,
        "networks (compress.network)": NETWORKS,
    }
    width = max(len(name) for registry in sections.values() for name in registry)
    lines: list[str] = []
    for title, registry in sections.items():
        lines.append(title)
        lines.extend(f"  {name:<{width}}  {line}" for name, (_, line) in registry.items())
    lines.append("one of your own: package.module:Attr, looked for in the folder where the command is started")
    return _print_lines(lines)


def _trial(options: argparse.Namespace) -> int:
    from nni_bayes_nas.experiment.trial import main as trial_main

    return trial_main()


def _nnictl_env(options: argparse.Namespace) -> int:
    from nni_bayes_nas.experiment.nni_compat import loopback_environment

    # Always in quotes: a value holds blanks, and may hold what the shell would expand.
    quoted = {name: "'" + value.replace("'", "'\"'\"'") + "'" for name, value in loopback_environment().items()}
    return _print_lines(f"export {name}={value}" for name, value in quoted.items())


def _configuration(options: argparse.Namespace) -> tuple[Config, Path]:
    """Reads and checks what needs no heavy import, before torch and NNI are loaded."""
    config = load_config(options.config, options.set, options.seed)
    check_names(config)
    output = Path(options.output) if options.output else Path("runs") / Path(options.config).stem
    output = Path.cwd() / output
    for folder in (output, *output.parents):
        if folder.exists():
            if not folder.is_dir():
                raise ConfigError(f"`--output` must be a folder: `{folder}` is a file\ngive another --output")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise ConfigError(f"`--output` must be writable, but `{folder}` is not\ngive another --output")
            break
    return config, output


def _unused_sections(options: argparse.Namespace, config: Config) -> list[str]:
    """Sections that are given for another command, in a run of one of our plans that search."""
    if config.experiment.plan not in ("search_and_retrain", "posterior_refinement"):
        return []
    given = parse_yaml(Path(options.config).read_text(encoding="utf-8"), options.config) or {}
    unused = [name for name in ("compress", "predict") if name in given]
    if "weight_hypernet" in config.strategy.args:  # what it reads off is pruned as `compress` says
        unused = [name for name in unused if name != "compress"]
    return [f"`{name}` has no part in this run; for it: {PROGRAM} {name} {options.config}" for name in unused]


def _add_current_folder() -> None:
    """Makes the user's own modules importable; last in line, so that they shadow no installed package."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)


def _print_lines(lines: Iterable[str]) -> int:
    text = "\n".join(lines)
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The reader (`| head`) had enough. What is left in the buffer must not fail at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _print_error(error: Exception, lines: int) -> None:
    text = [line.rstrip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if lines == 1:
        text = [" ".join(line.strip() for line in text)]
    print("error: " + "\n".join(text[:lines]), file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors keep to the three lines of the package's own."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\nsee `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Architecture search with complexity control, run by NNI: one search, a family of networks.",
        epilog=f"example:\n  {PROGRAM} run examples/configs/demo-digits.yaml --output runs/demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (function, line, example) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=line,
            description=line[0].upper() + line[1:] + ".",
            epilog="example:\n  " + example.format(program=f"{PROGRAM} {name}"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(function=function)
        if name in ("run", "search", "compress", "predict"):
            _add_experiment_options(command)
        elif name == "report":
            command.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, for example runs/demo")
        elif name == "evaluate":
            _add_evaluate_options(command)
        elif name == "export":
            _add_export_options(command)
    return parser


def _add_experiment_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG", help="the YAML file of the experiment")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="override one value of the configuration; may be given again, for example --set search.epochs=3",
    )
    command.add_argument("--output", metavar="DIR", help="the run folder (default: runs/ and the name of CONFIG)")
    command.add_argument("--seed", type=int, metavar="N", help="override the seed of the configuration")
    command.add_argument("--resume", action="store_true", help="go on with the run that DIR holds")


def _add_evaluate_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN", help="the folder of a run that retrained, for example runs/demo")
    command.add_argument(
        "--architecture",
        action="append",
        default=[],
        metavar="ID",
        help="its id in RUN/summary.json; may be given again (default: all that were retrained)",
    )
    command.add_argument("--attacks", nargs="+", metavar="NAME", help="of fgsm, pgd, square and noise (default: all)")
    command.add_argument(
        "--epsilons",
        type=float,
        nargs="+",
        metavar="X",
        help="largest change of a pixel, of 1 for all (default: 0.05 0.1 0.2); 0.03137 is 8/255",
    )
    command.add_argument(
        "--damages", type=float, nargs="+", metavar="X", help="shares of missing edges (default: 0.1 0.2 0.3)"
    )
    command.add_argument("--objects", type=int, metavar="N", help="test objects that are attacked (default: 256)")
    command.add_argument("--seed", type=int, metavar="N", help="of the random parts of attacks (default: 0)")


def _add_export_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN", help="the folder of a run that retrained, for example runs/demo")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--architecture", metavar="ID", help="its id in RUN/summary.json")
    which.add_argument("--compressed", metavar="NAME", help="or a compression in RUN/summary.json, with:")
    command.add_argument("--lambda", dest="lam", type=float, metavar="L", help="any in the range that was trained")
    command.add_argument("--fraction", type=float, metavar="F", help="share of the weights left out, in [0, 1)")
    command.add_argument("--trained-on", action="store_true", help="of the network trained on at its lambda, if it was")
    command.add_argument(
        "--format", default="pt2", help="pt2: torch.export (default); onnx: needs the extra nni-bayes-nas[export]"
    )
    command.add_argument("--output", metavar="FILE", help="the file (default: RUN/export/ID.FORMAT)")
    command.add_argument(
        "--seed", type=int, metavar="N", help="which retraining (default: that of the best validation score)"
    )
    inputs = command.add_mutually_exclusive_group()
    inputs.add_argument(
        "--raw-input",
        action="store_true",
        help="the file takes float32 (batch, ...) objects as the data set gives them, 8-bit values divided by 255, and "
        "standardizes them itself (default); regression outputs are in the units of the targets",
    )
    inputs.add_argument(
        "--standardized-input",
        action="store_true",
        help="the file takes objects that the caller has standardized by the mean and sd of the training set",
    )
    command.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="largest difference of an output from the source network's (default: 1e-5)",
    )


_COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], str, str]] = {
    "run": (
        _run,
        "search, retrain the architectures as NNI trials, report",
        "{program} examples/configs/demo-digits.yaml --set search.epochs=10 --output runs/short",
    ),
    "search": (
        _search,
        "search in this process, without NNI's manager and without retraining",
        "{program} examples/configs/demo-digits.yaml --seed 1 --output runs/one-search",
    ),
    "compress": (
        _compress,
        "train weights as functions of lambda, and prune them, as NNI trials; report",
        "{program} examples/configs/compress-digits.yaml --set compress.repeats=3 --output runs/compress",
    ),
    "predict": (
        _predict,
        "predict small networks for the data from searches on parts of data sets, as NNI trials; report",
        "{program} examples/configs/predict-digits.yaml --set predict.tasks=20 --output runs/predict",
    ),
    "report": (_report, "write report.html from run folders alone", "{program} runs/demo"),
    "evaluate": (
        _evaluate,
        "attack and damage what a run retrained, measure its calibration; ensembles of its posterior",
        "{program} runs/demo --epsilons 0.1 0.2 --objects 500",
    ),
    "export": (
        _export,
        "write a retrained network as one file that needs neither NNI nor this package",
        "{program} runs/demo --architecture s0-lam-0.001 --format pt2 --output digits.pt2",
    ),
    "list": (_list, "strategies, search spaces, data sets and plans, with one line each", "{program}"),
    "trial": (
        _trial,
        "what an NNI trial runs; started by NNI, not by hand",
        "trialCommand: {program}        (in the YAML file that nnictl reads)",
    ),
    "nnictl-env": (
        _nnictl_env,
        "print the environment under which plain nnictl binds to loopback",
        'eval "$({program})" && nnictl create --config examples/nnictl/digits.yml --port 8080',
    ),
}
