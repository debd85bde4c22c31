"""The one exception that a user's own mistake raises."""


class IsvitError(Exception):
    """A mistake in the input, told in one sentence.

    The message says what happened, what was expected and which option mends it. The command line prints it without a
    traceback and exits with 2.
    """

    status = 2
    """Exit status of the program."""


def first_line(error: Exception) -> str:
    """First line of what a library reports, for use inside a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
