"""The one exception for what a user can mend. It knows nothing of the rest of the program."""


class UserError(ValueError):
    """Something the user can put right: one line that says what, where, what was expected and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """
