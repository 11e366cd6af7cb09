"""The exceptions that reach the user, and the exit codes they end in.

One line each: "`NAME` must RULE, but is VALUE instead. REMEDY." The command line prints the line and nothing else.
"""


class HkdError(Exception):
    """A failure with a sentence for the user. Exit 1: the world's fault (disk, network, memory)."""

    exit_code = 1


class UserError(HkdError):
    """What the user gave cannot be used. Exit 2."""

    exit_code = 2


class MissingPackageError(HkdError):
    """An optional package is absent."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}, which is not installed. Run: pip install 'hkd[{extra}]'")
