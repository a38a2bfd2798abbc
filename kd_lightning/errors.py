"""The exception for users' mistakes. Imports nothing, so that `kd --help` starts fast."""


def printable(text: str) -> str:
    """One line without control characters, which could rewrite what a terminal shows.

    Names of folders, runs and classes come from files, so they may hold escape sequences.

    Args:
        text: any text. White space of any length becomes one space; a control character becomes
            its escape, such as `\\x1b`.
    """
    line = " ".join(text.split())
    # Also refuses marks that change the direction of text, and surrogates.
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in line
    )


class UserError(ValueError):
    """A mistake that the user can fix. The message is one line: what is wrong, and what to do.

    The command line prints only this message on standard error and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
