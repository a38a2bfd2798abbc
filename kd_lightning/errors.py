"""The one exception for a user's mistake. It imports nothing, so that `kd --help` stays quick."""


class UserError(ValueError):
    """Something a user can mend. Its message is one line: what is wrong, and what to do.

    The command line prints it alone on standard error and ends with exit code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
