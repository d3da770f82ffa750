"""The one exception that a user's mistake raises."""


class UserError(ValueError):
    """A mistake the user can mend. The message is one sentence: what is wrong, where, and what to do.

    The command line prints the message alone, without a stack trace, and exits with status 2.
    """
