"""Errors that end in one helpful line: each names what was wrong, the value seen and the fix, and carries its exit code."""


class DelineateError(Exception):
    """A failure that the user can act on; the command line prints its message and exits with `exit_code`."""

    exit_code = 1


class ConfigError(DelineateError):
    """Wrong usage: a flag, a config value or an argument that cannot be (exit code 2)."""

    exit_code = 2


class DataError(DelineateError):
    """Bad data: a file that is missing, damaged or does not fit the others (exit code 3)."""

    exit_code = 3

    def __init__(self, message: str, kind: str = "damaged file") -> None:
        super().__init__(message)
        self.kind = kind  # the sort of fault, under which `delineate data check` counts it


def suggest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Return `"; did you mean 'x'?"` for the closest of `known` to `name`, or an empty string.

    >>> suggest("learning_rat", ["learning_rate", "epochs"])
    "; did you mean 'learning_rate'?"
    """
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
