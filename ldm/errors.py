"""The exceptions for a user's mistakes."""


class UserError(ValueError):
    """A mistake that the user can correct. The message is one sentence: what is wrong, then what to do.

    Commands print the message without a stack trace and exit with status 2.
    """


class InvalidValue(UserError):
    """An argument out of its range, or at odds with another one. The message states range and value.

    Where the argument came from a config, the command line adds its key in front.
    """


class Diverged(UserError):
    """Training that diverged, so that its result is of no use. Commands exit with status 3."""


class WriteError(UserError, OSError):
    """A file could not be written, as on a full disk; an older file under its name is unchanged."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem, advice)
        self.problem, self.advice = problem, advice

    def __str__(self) -> str:
        return f"{self.problem}: {self.advice}"
