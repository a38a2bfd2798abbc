"""The exception for users' mistakes. Imports nothing, so that `kd --help` starts fast."""


class UserError(ValueError):
    """A mistake that the user can fix. The message is one line: what is wrong, and what to do.

    The command line prints only this message on standard error and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
