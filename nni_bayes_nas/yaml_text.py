"""YAML as configurations use it: read strictly, written so that it reads back to equal values."""

import re
from typing import Any

import yaml

from nni_bayes_nas.errors import ConfigError


def parse_yaml(text: str, where: str) -> Any:
    """The values of a YAML text.

    Args:
        text: The text.
        where: What it is, for the error.

    Raises:
        ConfigError: It is not YAML, or gives a key twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{where} is not valid YAML{line}: {problem}") from None
    except ValueError as error:  # what looks like a date and is none, of which PyYAML does not say where
        raise ConfigError(f"{where} is not valid YAML: {error}\nput a text that looks like a date in quotes") from None


def to_yaml(values: Any) -> str:
    """Plain values as YAML, keys in their order; ``parse_yaml`` reads them back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice (PyYAML keeps the last in silence) and reads 1e-3 as a float, as YAML 1.2 does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key `{key.value}` is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that ``_Loader`` would otherwise read as floats; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # In single quotes PyYAML writes the line breaks of Unicode as they are, and reads them back as blanks.
        style = '"' if any(break_ in data for break_ in "\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


for _yaml_class in (_Loader, _Dumper):
    _yaml_class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
