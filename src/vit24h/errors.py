"""The one exception for what a user can mend, and how its line stays one. Knows nothing of the rest of the program."""


class UserError(ValueError):
    """Something the user can put right: one line that says what, where, what was expected and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


def one_line(text: str) -> str:
    """Text of unknown origin as part of a message: as it is where that is readable, else its beginning, or escaped."""
    short = text if len(text) <= 100 else text[:97] + "..."
    return short if short.isprintable() else repr(short)[1:-1]
