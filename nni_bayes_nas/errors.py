"""Exceptions of the package: each says the rule, the value and the remedy, in at most three lines."""

import signal


class NniBayesNasError(Exception):
    """Base of every exception that the package raises on purpose."""


class ConfigError(NniBayesNasError, ValueError):
    """The user's mistake: the command line ends with exit code 2 and writes nothing."""


class SpaceError(ConfigError):
    """A search space, or an architecture, that the rest of the experiment cannot work with."""


class DataError(ConfigError):
    """Data that are missing, malformed, or do not fit the search space."""


class NumericsError(NniBayesNasError, ArithmeticError):
    """A NaN or an infinity; the message names the term and the step."""


class StoppedError(NniBayesNasError):
    """A signal stopped the work; the command line ends with exit code 128 + its number.

    Args:
        number: The signal.
        remedy: How to go on.
    """

    def __init__(self, number: int, remedy: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}\n{remedy}")
        self.exit_code = 128 + number


class RunError(NniBayesNasError, RuntimeError):
    """A run that could not go on: manager, dispatcher or trials died; exit code 1."""
