"""The names that a configuration may use, and how a name becomes a class or a function.

The built-in strategies, spaces and data sets are plug-ins on equal footing with the user's own
``package.module:Attr``: nothing here imports them before they are asked for.
"""

import difflib
import enum
import importlib
import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from nni_bayes_nas.coercion import coerce, join_path, require_json
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError

Registry: TypeAlias = Mapping[str, tuple[str, str]]

STRATEGIES: dict[str, tuple[str, str]] = {
    "dirichlet_darts": (
        "nni_bayes_nas.strategies.dirichlet_darts:DirichletDARTS",
        "Bayesian choice of architecture: a Dirichlet posterior over structures, Gaussian weights if wanted",
    ),
    "hyper_darts": (
        "nni_bayes_nas.strategies.hyper_darts:HyperDARTS",
        "DARTS whose structure parameters are a hypernetwork of the complexity parameter lambda",
    ),
    "regularized_darts": (
        "nni_bayes_nas.strategies.regularized_darts:RegularizedDARTS",
        "DARTS with an L1 term and a penalty on the expected cost",
    ),
}

SEARCH_SPACES: dict[str, tuple[str, str]] = {
    "cell": (
        "nni_bayes_nas.search_spaces.cell:CellSpace",
        "searched cells for images of 8x8 to 224x224, built from NNI's Cell; sizes span a factor of 6 and more",
    ),
    "chain": (
        "nni_bayes_nas.search_spaces.chain:ChainSpace",
        "a short chain of operation choices; small, for tests and first steps",
    ),
    "nasbench201": (
        "nni_bayes_nas.search_spaces.nasbench201:NasBench201Space",
        "the cell of NAS-Bench-201 (six choices of five operations) in a network of any width and depth",
    ),
    "dense": (
        "nni_bayes_nas.search_spaces.dense:DenseSpace",
        "fully connected layers for vectors: skipped, of low rank, full or wide; sizes span a factor of 6 and more",
    ),
}

PLANS: dict[str, tuple[str, str]] = {
    "architecture_prediction": (
        "nni_bayes_nas.experiment.plans.architecture_prediction:ArchitecturePrediction",
        "searches on small parts of data sets, a meta-model of what they found, and its networks for all data",
    ),
    "compression": (
        "nni_bayes_nas.experiment.plans.compression:Compression",
        "networks whose Gaussian weights are functions of lambda, pruned to ever fewer",
    ),
    "posterior_refinement": (
        "nni_bayes_nas.experiment.plans.posterior_refinement:PosteriorRefinement",
        "searches, short trainings that refine their posteriors by a Gaussian process, retraining of what comes out",
    ),
    "search_and_retrain": (
        "nni_bayes_nas.experiment.plans.search_and_retrain:SearchAndRetrain",
        "searches, then every architecture read off is retrained beside random ones of matched sizes",
    ),
}

NETWORKS: dict[str, tuple[str, str]] = {
    "mlp": ("nni_bayes_nas.compression.networks:mlp", "fully connected layers; hidden: [300, 100] is LeNet-300-100"),
    "cnn": ("nni_bayes_nas.compression.networks:cnn", "a small convolutional network with batch normalization"),
    "space": ("nni_bayes_nas.experiment.compress:derived", "the derived network of compress.architecture"),
}

DATA_SETS: dict[str, tuple[str, str]] = {
    "digits": (
        "nni_bayes_nas.experiment.data_sets:load_digits",
        "1797 handwritten digits, 8x8, embedded: no network",
    ),
    "mnist": (
        "nni_bayes_nas.experiment.data_sets:load_mnist",
        "MNIST, 28x28, from data.root; data.download: true fetches it",
    ),
    "fashion_mnist": (
        "nni_bayes_nas.experiment.data_sets:load_fashion_mnist",
        "Fashion-MNIST, 28x28, from data.root; data.download: true fetches it",
    ),
    "cifar10": (
        "nni_bayes_nas.experiment.data_sets:load_cifar10",
        "CIFAR-10, 3x32x32, from data.root; data.download: true fetches it",
    ),
    "cifar100": (
        "nni_bayes_nas.experiment.data_sets:load_cifar100",
        "CIFAR-100, 3x32x32, from data.root; data.download: true fetches it",
    ),
    "image_folder": (
        "nni_bayes_nas.experiment.data_sets:load_image_folder",
        "images in one folder per class under data.root, resized to data.image_size",
    ),
    "diabetes": (
        "nni_bayes_nas.experiment.data_sets:load_diabetes",
        "442 patients, 10 features, for data.task: regression; embedded: no network",
    ),
    "wine": (
        "nni_bayes_nas.experiment.data_tables:load_wine",
        "178 wines, 13 measurements, 3 classes, embedded: no network",
    ),
    "breast_cancer": (
        "nni_bayes_nas.experiment.data_tables:load_breast_cancer",
        "569 tumours, 30 measurements, 2 classes, embedded: no network",
    ),
    "csv": (
        "nni_bayes_nas.experiment.data_tables:load_csv",
        "a table with a line of names in the file data.path; the last column is the target",
    ),
    "npz": (
        "nni_bayes_nas.experiment.data_sets:load_npz",
        "arrays x and y (and x_test, y_test) of the file data.path; images or vectors",
    ),
}


def resolve(kind: str, name: str, registry: Registry) -> Any:
    """Imports what ``name`` means: an entry of ``registry``, or the user's own ``package.module:Attr``.

    Args:
        kind: What is looked for, in the words of the error: "strategy", "search space", "data set", "plan".
        name: The name, as in the configuration.
        registry: One of the dicts of this module.

    Raises:
        ConfigError: The name is not known (the known ones and the nearest are named), its module cannot be imported,
            or the module has no such attribute.
    """
    check_name(kind, name, registry)
    if name in registry:
        return _attribute(importlib.import_module(registry[name][0].partition(":")[0]), registry[name][0], kind)
    module_name = name.partition(":")[0]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # The user's module may be there and miss a module itself: the error then names that other one.
        missing = error.name or module_name
        raise ConfigError(
            f"{kind} `{name}`: no module named `{missing}`\n"
            f"modules are looked for in the folder where the command was started, {Path.cwd()},\n"
            "and among the installed packages: start the command beside your module, or install it"
        ) from error
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{kind} `{name}`: importing `{module_name}` failed\n{cause}\nmend that module") from error
    return _attribute(module, name, kind)


def check_name(kind: str, name: str, registry: Registry) -> None:
    """Refuses a name that cannot be resolved, without importing anything.

    Raises:
        ConfigError: The name is neither in ``registry`` nor of the form ``package.module:Attr``.
    """
    if name in registry:
        return
    module, colon, attribute = name.partition(":")
    if colon:
        if all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
            return
        raise ConfigError(
            f"{kind} `{name}` must have the form package.module:Attr, with Python names\n"
            "for example my_module:MyClass for the class MyClass of my_module.py"
        )
    matches = difflib.get_close_matches(name, registry, n=1)
    raise ConfigError(
        f"unknown {kind} `{name}`" + (f", did you mean `{matches[0]}`?" if matches else "") + "\n"
        f"known: {', '.join(registry)}; one of your own is given as package.module:Attr"
    )


def check_names(config: Config) -> None:
    """Checks every name of a configuration, without importing anything.

    Raises:
        ConfigError: As ``check_name``.
    """
    check_name("search space", config.space.name, SEARCH_SPACES)
    check_name("data set", config.data.name, DATA_SETS)
    check_name("strategy", config.strategy.name, STRATEGIES)
    check_name("plan", config.experiment.plan, PLANS)
    check_name("network", config.compress.network, NETWORKS)
    for source in config.predict.sources:
        check_name("data set", source.name, DATA_SETS)


def fill_args(
    target: Callable[..., Any], args: Mapping[str, Any], where: str, given: Collection[str] = ()
) -> dict[str, Any]:
    """Checks ``args`` against the signature of ``target`` and fills in its defaults.

    A class is read by its ``__init__``; where that takes ``**kwargs``, the optional parameters of the base class that
    receives them may be given too. Values are checked and converted by their annotations, as ``coercion.coerce`` does.

    Args:
        target: The class or function.
        args: What the user gave, by name.
        where: Dotted path of ``args`` in the configuration, for errors: "strategy.args".
        given: Parameters that the caller supplies (``in_channels``, ``num_classes``, ...): they may be missing, and
            their defaults are not filled in.

    Returns:
        ``args`` with the defaults filled in; defaults that YAML cannot hold are left to ``target``.

    Raises:
        ConfigError: An unknown key (the nearest is named), a wrong type, or a missing value without default.
    """
    signature = _signature(target)
    title = getattr(target, "__name__", str(target))
    filled: dict[str, Any] = {}
    for key, value in args.items():
        if key not in signature.own and key not in signature.forwarded and not signature.takes_any:
            settable = [name for name in (*signature.own, *signature.forwarded) if name not in given]
            near = difflib.get_close_matches(key, settable, n=1)
            raise ConfigError(
                f"unknown key `{join_path(where, key)}`" + (f", did you mean `{near[0]}`?" if near else "") + "\n"
                f"`{title}` takes {', '.join(settable) or 'no arguments'}"
            )
        filled[key] = coerce(value, signature.hints.get(key, Any), join_path(where, key))
    for name, parameter in signature.own.items():
        if name in filled or name in given:
            continue
        default = parameter.default
        if default is inspect.Parameter.empty:
            raise ConfigError(
                f"`{join_path(where, name)}` is missing: `{title}` has no default for it\nset it in the configuration"
            )
        plain = default.value if isinstance(default, enum.Enum) else default
        if _is_plain(default) and _fits(plain, signature.hints.get(name, Any)):
            filled[name] = plain
    return {name: filled[name] for name in [*signature.own, *filled] if name in filled}


def accepted_names(target: Callable[..., Any]) -> set[str]:
    """Names that ``target`` takes, those that its ``**kwargs`` hand on to base classes included.

    Not ``inspect.signature(target)``: NNI's ModelSpace wraps ``__init__`` as (*args, **kwargs).
    """
    signature = _signature(target)
    return {*signature.own, *signature.forwarded}


def _attribute(module: Any, path: str, kind: str) -> Any:
    found = module
    for part in path.partition(":")[2].split("."):
        if not hasattr(found, part):
            public = [name for name in vars(module) if not name.startswith("_")]
            near = difflib.get_close_matches(part, public, n=1)
            hint = f"did you mean `{near[0]}`?" if near else "check the spelling after the colon"
            raise ConfigError(f"{kind} `{path}`: module `{module.__name__}` has no `{part}`; {hint}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{kind} `{path}` must be a class or a function, got {type(found).__name__}")
    return found


@dataclass
class _Signature:
    """What a class or a function takes by name."""

    own: dict[str, inspect.Parameter] = field(default_factory=dict)
    # Of the bases that **kwargs are handed on to: taken when given, but the class may set them itself.
    forwarded: dict[str, inspect.Parameter] = field(default_factory=dict)
    hints: dict[str, Any] = field(default_factory=dict)
    takes_any: bool = False

    def add(self, function: Callable[..., Any], skip_first: bool) -> bool:
        """Adds the named parameters of ``function``; returns whether it takes any other name too."""
        parameters = list(inspect.signature(function).parameters.values())[1 if skip_first else 0 :]
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        named = {parameter.name: parameter for parameter in parameters if parameter.kind in by_name}
        if not self.own:
            self.own = named
        else:
            # What a base demands is the business of the class that calls it.
            optional = {name: item for name, item in named.items() if item.default is not inspect.Parameter.empty}
            self.forwarded = {**optional, **self.forwarded}
        self.hints = {**_hints(function, named), **self.hints}
        return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _signature(target: Callable[..., Any]) -> _Signature:
    signature = _Signature()
    if not inspect.isclass(target):
        signature.takes_any = signature.add(target, skip_first=False)
        return signature
    for base in target.__mro__[:-1]:
        # nni.trace makes a subclass whose own machinery comes first in line.
        if "__init__" not in vars(base) or base.__module__ == "nni.common.serializer":
            continue
        if not signature.add(_unwrapped(vars(base)["__init__"]), skip_first=True):
            return signature
    # torch's Module takes (*args, **kwargs) and refuses them all at run time: no name is free there.
    signature.takes_any = not any(base.__module__.startswith("torch.nn") for base in target.__mro__)
    return signature


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The ``__init__`` that a wrapper around it keeps in its closure, as that of NNI's ModelSpace does."""
    function = inspect.unwrap(function)
    if getattr(function, "__name__", "") == "__init__":
        return function
    for cell in getattr(function, "__closure__", None) or ():
        if inspect.isfunction(cell.cell_contents):
            inner = _unwrapped(cell.cell_contents)
            if getattr(inner, "__name__", "") == "__init__":
                return inner
    return function


def _hints(function: Callable[..., Any], named: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        # A name that only type checkers import: what is spelled out is checked, the rest is taken as it comes.
        hints = {name: item.annotation for name, item in named.items() if not isinstance(item.annotation, str)}
    return {
        name: hints[name] for name in named if hints.get(name, inspect.Parameter.empty) is not inspect.Parameter.empty
    }


def _fits(default: Any, annotation: Any) -> bool:
    """Whether a default may be given: that of `size: int = None`, or an infinite one, only the target itself may."""
    try:
        coerce(default, annotation, "")
        require_json(default)
    except ConfigError:
        return False
    return True


def _is_plain(value: Any) -> bool:
    if isinstance(value, enum.Enum):
        return _is_plain(value.value)
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, float, str))
