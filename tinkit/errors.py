"""The errors that a user may see: what happened, where, the value seen, and what to do next.

`TinkitError` is for users (the command line prints it without a traceback); `ValueError` stays for programmers.
The exit codes are part of the product: build pipelines branch on them.
"""

EXIT_OK = 0
EXIT_USER = 1  # something the user can fix
EXIT_USAGE = 2  # click's own code for a wrong command line
EXIT_GATE = 3  # a gate or a budget failed
EXIT_NO_VERDICT = 4  # could not judge: the board has no such runtime, for example


class TinkitError(Exception):
    """What happened, with where, seen and the next step on lines of their own when they are known."""

    exit_code = EXIT_USER

    def __init__(self, what, where=None, seen=None, next_step=None):
        self.what, self.where, self.seen, self.next_step = what, where, seen, next_step
        super().__init__(what)

    def __str__(self):
        lines = [self.what]
        for label, value in (("where", self.where), ("seen", self.seen), ("next", self.next_step)):
            if value is not None:
                lines.append("  {:<6} {}".format(label + ":", value))
        return "\n".join(lines)


class CannotJudge(TinkitError):
    """There is no verdict, neither pass nor fail: a runtime or a device is missing."""

    exit_code = EXIT_NO_VERDICT


class Interrupted(TinkitError):
    """The user pressed Ctrl-C; the work so far is saved and `next_step` tells how to go on."""

    exit_code = 130


def from_os_error(error, doing):
    """Turn an OSError (full disk, read-only folder, missing permission) into a TinkitError.

    `doing` names the work in the -ing form: "writing the checkpoint".
    """
    import errno

    hints = {
        errno.ENOSPC: "free some space, or choose another folder",
        errno.EDQUOT: "the disk quota is used up: free some space, or choose another folder",
        errno.EFBIG: "the file-size limit of this shell or file system was reached (see ulimit -f)",
        errno.EROFS: "the file system is read-only: choose another folder with --out",
        errno.EACCES: "check the permissions, or choose another folder",
        errno.EPERM: "check the permissions, or choose another folder",
    }
    return TinkitError(
        "Could not finish {}: {}".format(doing, error.strerror or error),
        where=error.filename,
        next_step=hints.get(error.errno),
    )
