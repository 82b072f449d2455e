"""The two ways a run ends early that are not bugs: a user's error, and an interruption."""


class UserError(Exception):
    """A mistake or a limit that the user can mend: one line that names the key and the mend; exit 1."""


class Interrupted(BaseException):
    """A signal asked the run to stop and its state is saved; exit 128 + signum.

    Not an `Exception`, so a sweep stops with it instead of going on to the next job.
    """

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


def shortened(text: str, length: int) -> str:
    """On one line, the middle left out where it is longer."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    half = (length - 5) // 2
    return text if len(text) <= length else f"{text[:half]} ... {text[-half:]}"


def first_line(error: BaseException) -> str:
    """Of its message, or its type's name if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
