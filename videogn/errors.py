"""The errors a user can cause: each message names the thing, its value and the remedy.

Commands print such an error as one message and end with exit code 2; any other exception is a
bug or a failing machine.
"""


class UserError(ValueError):
    """Something the user gave cannot be used."""


class ConfigError(UserError):
    """A config file or ``key=value`` override is wrong; the message lists every fault found."""


class AnnotationError(UserError):
    """A list of videos is wrong; the message lists every fault as ``file:line``."""


class WeightError(UserError):
    """A weight file or checkpoint cannot be read, or does not fit the network."""


class DecodeError(UserError):
    """A video cannot be decoded whole.

    Attributes:
        path: the file.
        reason: what is wrong with it, without the path.
        code: the kind of fault in one word, one of those of ``videogn data check``.
    """

    def __init__(self, path: str, reason: str, code: str = "unreadable") -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.code = code

    def __reduce__(self) -> "tuple[type[DecodeError], tuple[str, str, str]]":
        # Exceptions cross from data workers by pickle, which calls the class with ``args``.
        return DecodeError, (self.path, self.reason, self.code)


class RunError(UserError):
    """An output folder or a run's state does not allow what was asked."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, for the inside of a sentence: its first line or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
