"""The one exception that a user's own mistake raises."""


class IsvitError(Exception):
    """A mistake in the input, told in one sentence.

    The message says what happened, what was expected and which option mends it. The command line prints it without a
    traceback and exits with 2.
    """
