"""The exceptions for a user's mistakes."""


class UserError(ValueError):
    """A mistake that the user can correct. The message is one sentence: what is wrong, then what to do.

    Commands print the message without a stack trace and exit with status 2.
    """


class InvalidValue(UserError):
    """An argument out of its range, or at odds with another one. The message states range and value.

    Where the argument came from a config, the command line adds its key in front.
    """
