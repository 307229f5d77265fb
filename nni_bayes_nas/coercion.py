"""Strict conversion of YAML and JSON values to annotated Python types."""

import dataclasses
import difflib
import enum
import math
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Union

from nni_bayes_nas.errors import ConfigError

# YAML 1.1, which PyYAML reads, takes 1e-3 for a string: a float needs a dot there.
_EXPONENT_FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


def coerce(value: Any, annotation: Any, path: str) -> Any:
    """Checks ``value`` against ``annotation`` and returns it in the annotated type.

    Strict: a bool is no int, a string is no number (but for ``"1e-3"`` where a float is asked, which YAML 1.1 reads
    as a string), an int is taken for a float, a list for a tuple, a mapping for a dataclass. Floats must be finite.

    Args:
        value: What the user gave: plain YAML or JSON types.
        annotation: A type: bool, int, float, str, None, ``Literal``, unions, ``list``, ``tuple``, ``dict``, enums,
            dataclasses, ``Any``, or any other class (checked with ``isinstance``).
        path: Dotted path of the value, named in the error.

    Raises:
        ConfigError: The value does not fit.

    >>> coerce([1, 2], tuple[float, ...], "space.args.widths")
    (1.0, 2.0)
    """
    if annotation is Any or isinstance(annotation, typing.TypeVar):
        return value
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return coerce(value, typing.get_args(annotation)[0], path)
    if origin is Literal:
        return _coerce_literal(value, typing.get_args(annotation), path)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, typing.get_args(annotation), path)
    if annotation is None or annotation is types.NoneType:
        return _expect(value is None, value, "must be null", path)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _coerce_dataclass(value, annotation, path)
    container = origin or annotation
    if container is dict or container is Mapping:
        return _coerce_mapping(value, typing.get_args(annotation), path)
    if container in (list, tuple, Sequence, Collection):
        return _coerce_sequence(value, container, typing.get_args(annotation), path)
    if isinstance(container, type) and issubclass(container, enum.Enum):
        return _coerce_enum(value, container, path)
    return _coerce_scalar(value, container, path)


def closest(name: str, known: Collection[str]) -> str:
    """Says what the user may have meant: ``did you mean `x`?``, or the known names where none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    if matches:
        return f"did you mean `{matches[0]}`?"
    return "known: " + (", ".join(known) or "none")


def shown(value: Any) -> str:
    """One short line for a value that a message quotes."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def join_path(path: str, key: object) -> str:
    """Dotted path of ``key`` below ``path``, which is empty for the whole configuration."""
    return f"{path}.{key}" if path else str(key)


def require_json(value: Any, path: str = "") -> None:
    """Refuses what JSON cannot hold: a run hands its configuration on to trials, and keeps it, as JSON.

    Raises:
        ConfigError: Names the first such value.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            where = join_path(path, key)
            _expect(
                isinstance(key, str), key, "has a key that must be a string (put it in quotes)", path or "the whole"
            )
            require_json(item, where)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            require_json(item, join_path(path, i))
    elif isinstance(value, float):
        _expect(math.isfinite(value), value, "must be a finite number", path)
    elif not isinstance(value, enum.Enum):
        fine = value is None or isinstance(value, (bool, int, str))
        _expect(
            fine, value, "must be a number, a string, a bool, null, a list or a mapping (put a date in quotes)", path
        )


def _expect(holds: bool, value: Any, rule: str, path: str) -> Any:
    if not holds:
        raise ConfigError(f"`{path}` {rule}, got {shown(value)} ({_type_name(value)})")
    return value


def _type_name(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", type(None): "null", str: "a string", bool: "a bool"}
    return names.get(type(value), type(value).__name__)


def _coerce_literal(value: Any, options: tuple[Any, ...], path: str) -> Any:
    for option in options:
        if type(option) is type(value) and option == value:
            return option
    known = ", ".join(repr(option) for option in options)
    hint = difflib.get_close_matches(str(value), [str(option) for option in options], n=1)
    raise ConfigError(
        f"`{path}` must be one of {known}, got {shown(value)}" + (f"\ndid you mean {hint[0]!r}?" if hint else "")
    )


def _coerce_union(value: Any, members: tuple[Any, ...], path: str) -> Any:
    for member in members:
        if type(value) is member or (value is None and member is types.NoneType):
            return coerce(value, member, path)
    errors: list[ConfigError] = []
    for member in members:
        if member is types.NoneType:
            continue
        try:
            return coerce(value, member, path)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    names = " or ".join(_annotation_name(member) for member in members)
    raise ConfigError(f"`{path}` must be {names}, got {shown(value)} ({_type_name(value)})")


def _annotation_name(annotation: Any) -> str:
    if annotation is types.NoneType:
        return "null"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(repr(option) for option in arguments)
    if origin in (list, tuple) and arguments and Ellipsis not in arguments:
        return f"a list of {len(arguments)} values" if origin is tuple else "a list"
    if origin in (tuple, Sequence, Collection):
        return "a list"
    return annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)


def _coerce_dataclass(value: Any, target: type, path: str) -> Any:
    if isinstance(value, target):
        return value
    _check_keys(value, path)
    hints = typing.get_type_hints(target)
    fields = {field.name: field for field in dataclasses.fields(target) if field.init}
    for key in value:
        if key not in fields:
            raise ConfigError(
                f"unknown key `{join_path(path, key)}`, {closest(key, fields)}\n"
                f"keys of {f'`{path}`' if path else 'a configuration'}: {', '.join(fields)}"
            )
    for name, field in fields.items():
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if missing and name not in value:
            raise ConfigError(f"`{join_path(path, name)}` is missing; give it, it has no default")
    return target(**{key: coerce(item, hints[key], join_path(path, key)) for key, item in value.items()})


def _check_keys(value: Any, path: str) -> None:
    where = path or "configuration"
    _expect(isinstance(value, Mapping), value, "must be a mapping of keys to values", where)
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(
                f"keys of `{where}` must be strings, got {shown(key)} ({_type_name(key)})\nput the key in quotes"
            )


def _coerce_mapping(value: Any, arguments: tuple[Any, ...], path: str) -> dict[Any, Any]:
    if not arguments or arguments[0] in (str, Any):
        _check_keys(value, path)
        key_type: Any = Any
    else:
        _expect(isinstance(value, Mapping), value, "must be a mapping of keys to values", path)
        key_type = arguments[0]
    item_type = arguments[1] if arguments else Any
    return {
        coerce(_number(key, key_type), key_type, f"{path} (key)"): coerce(item, item_type, join_path(path, key))
        for key, item in value.items()
    }


def _number(key: Any, key_type: Any) -> Any:
    """Of a key that is to be a whole number: JSON has no keys but strings."""
    return int(key) if key_type is int and isinstance(key, str) and re.fullmatch(r"-?[0-9]+", key) else key


def _coerce_sequence(value: Any, container: Any, arguments: tuple[Any, ...], path: str) -> Any:
    _expect(isinstance(value, (list, tuple)), value, "must be a list", path)
    if container is tuple and arguments and arguments[-1] is not Ellipsis:
        _expect(len(value) == len(arguments), value, f"must be a list of {len(arguments)} values", path)
        return tuple(
            coerce(item, kind, f"{path}[{i}]") for i, (item, kind) in enumerate(zip(value, arguments, strict=True))
        )
    kind = arguments[0] if arguments else Any
    items = [coerce(item, kind, f"{path}[{i}]") for i, item in enumerate(value)]
    return tuple(items) if container is tuple else items


def _coerce_enum(value: Any, target: type[enum.Enum], path: str) -> enum.Enum:
    if isinstance(value, target):
        return value
    members = {member.value: member for member in target}
    return members[_coerce_literal(value, tuple(members), path)]


def _coerce_scalar(value: Any, target: Any, path: str) -> Any:
    if target is bool:
        return _expect(isinstance(value, bool), value, "must be true or false", path)
    if target is int:
        return _expect(isinstance(value, int) and not isinstance(value, bool), value, "must be a whole number", path)
    if target is float:
        if isinstance(value, str) and _EXPONENT_FLOAT.fullmatch(value):
            value = float(value)
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), value, "must be a number", path)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        _expect(math.isfinite(number), value, "must be a finite number", path)
        return number
    if target is str:
        return _expect(isinstance(value, str), value, "must be a string (put it in quotes)", path)
    if isinstance(target, type):
        return _expect(isinstance(value, target), value, f"must be a {target.__name__}", path)
    return value


def plain(value: Any) -> Any:
    """A value of mappings and sequences as JSON has them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def require(holds: bool, path: str, rule: str, value: Any, remedy: str) -> None:
    """Raise ConfigError unless a rule holds for the value at a path of the configuration."""
    if not holds:
        raise ConfigError(f"`{path}` {rule}, got {shown(value)}; {remedy}")


def require_name(path: str, value: str) -> None:
    """Refuse a name of spaces."""
    require(bool(value.strip()), path, "must not be empty", value, "leave it out to take the default")


def require_at_least(path: str, value: int | None, least: int) -> None:
    """Refuse a number below the least one; None is none."""
    require(value is None or value >= least, path, f"must be at least {least}", value, f"set it to {least} or more")


def require_inside(path: str, value: float) -> None:
    """Refuse what is no fraction."""
    require(0 < value < 1, path, "must lie in (0, 1)", value, "it is a fraction, not a percentage")
