"""Writes options.md: every option of a configuration with its default and what its docstring says.

python docs/make_options.py
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import docstring_parser
import yaml

from nni_bayes_nas import registry
from nni_bayes_nas.compression import networks
from nni_bayes_nas.config import Config
from nni_bayes_nas.optim.selective import SelectiveOptimization

_HEAD = """# Options

Every option of a configuration, with its default and what it is; made by `docs/make_options.py` from the docstrings.
What they are for: [guide.md](guide.md).
"""
# What comes from elsewhere: the data, other sections, or your own code alone.
_GIVEN = (
    *("in_channels", "in_features", "num_classes", "num_outputs", "input_shape", "shape", "mutation_hooks"),
    *("warmup_epochs", "gradient_clip_val", "seed", "batch_size"),
)


# In the place of a default.
_NEEDED = object()


def document() -> str:
    """The whole file."""
    parts = [_HEAD]
    for section in dataclasses.fields(Config):
        made = getattr(Config(), section.name)
        if not dataclasses.is_dataclass(made):
            parts.append(f"## `{section.name}`\n\nOf all draws; {made} by default.\n")
            continue
        defaults = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
        parts.append(_table("##", section.name, type(made), defaults))
        kinds: Mapping[str, Any] = {"strategy": registry.STRATEGIES, "space": registry.SEARCH_SPACES}.get(
            section.name, {}
        )
        for name in sorted(kinds):
            cls = registry.resolve(section.name, name, kinds)
            filled = registry.fill_args(cls, {}, f"{section.name}.args", given=_GIVEN)
            parts.append(_table("###", f"{section.name}.args` of `{name}", cls, filled))
        if section.name == "retrain":
            options = registry.fill_args(SelectiveOptimization, {"active": 0.1}, "selection", given=_GIVEN)
            options = {"active": _NEEDED, **{key: value for key, value in options.items() if key != "active"}}
            parts.append(_table("###", "search.selection`, `retrain.selection", SelectiveOptimization, options))
        if section.name == "compress":
            for name in ("mlp", "cnn"):
                make = getattr(networks, name)
                filled = registry.fill_args(make, {}, "compress.network_args", given=_GIVEN)
                parts.append(_table("###", f"compress.network_args` of `{name}", make, filled))
    return "\n".join(parts)


def _table(level: str, title: str, target: Any, defaults: Mapping[str, Any]) -> str:
    found = docstring_parser.parse(target.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
    said: dict[str, str] = {}
    for one in found.params:  # arguments stand before attributes of the same name
        said.setdefault(one.arg_name, _line(one.description or ""))
    is_class = isinstance(target, type) and not dataclasses.is_dataclass(target)
    hints = typing.get_type_hints(target.__init__ if is_class else target)
    missing = sorted(set(defaults) - set(said))
    if missing:
        raise SystemExit(f"{target.__name__} says nothing of {', '.join(missing)}")
    rows = [
        f"| `{name}` | {_value(defaults[name])} | {_choices(hints.get(name), said[name])}{said[name]} |"
        for name in defaults
    ]
    head = f"{level} `{title}`\n\n{_line(found.short_description or '')}\n"
    return "\n".join([head, "| | default | |", "|---|---|---|", *rows, ""])


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("``", "`")).replace("|", "\\|").strip()


def _value(value: Any) -> str:
    if value is None or value is _NEEDED:
        return "none" if value is None else "must be given"
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    return f"`{text}`"


def _plain(value: Any) -> Any:
    """As YAML has it; of a section what is not its default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        default = type(value)()
        changed = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {k: v for k, v in changed.items() if k == "name" or v != _plain(getattr(default, k))}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def _choices(hint: Any, said: str) -> str:
    """Names that an option may have, if what is said has none of them."""
    names = [name for name in _literals(hint) if isinstance(name, str)]
    if not names or any(f'"{name}"' in said for name in names):
        return ""
    return ", ".join(f"`{name}`" for name in names) + ": "


def _literals(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) is Literal:
        yield from typing.get_args(hint)
        return
    for part in typing.get_args(hint):
        yield from _literals(part)


if __name__ == "__main__":
    Path(__file__).with_name("options.md").write_text(document(), encoding="utf-8")
