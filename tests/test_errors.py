"""What a user sees of a mistake: what, where, seen, next; and the exit codes that pipelines branch on."""

import errno

import pytest

from tinkit import errors
from tinkit.errors import CannotJudge, Interrupted, TinkitError, from_os_error


def test_message_has_the_four_parts_in_order():
    text = str(TinkitError("It broke.", where="a.toml", seen="x = 1", next_step="remove x"))
    assert text == "It broke.\n  where: a.toml\n  seen:  x = 1\n  next:  remove x"


def test_parts_that_are_not_known_leave_no_line():
    assert str(TinkitError("It broke.")) == "It broke."
    assert str(TinkitError("It broke.", seen=0)) == "It broke.\n  seen:  0"  # a zero is a value


def test_exit_codes_are_those_of_the_contract():
    assert (errors.EXIT_OK, errors.EXIT_USER, errors.EXIT_USAGE, errors.EXIT_GATE, errors.EXIT_NO_VERDICT) == (
        0,
        1,
        2,
        3,
        4,
    )
    assert (TinkitError("").exit_code, CannotJudge("").exit_code, Interrupted("").exit_code) == (1, 4, 130)
    assert issubclass(CannotJudge, TinkitError)
    assert issubclass(Interrupted, TinkitError)


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "read-only"),
        (errno.EFBIG, "ulimit"),
        (errno.EACCES, "permissions"),
    ],
)
def test_an_os_error_becomes_a_hint(number, hint):
    error = from_os_error(OSError(number, "as the system says it", "/some/file"), "writing the checkpoint")
    assert error.what == "Could not finish writing the checkpoint: as the system says it"
    assert error.where == "/some/file"
    assert hint in error.next_step


def test_an_unknown_os_error_still_says_what_happened():
    error = from_os_error(OSError("odd"), "reading")
    assert "odd" in str(error)
    assert error.next_step is None
