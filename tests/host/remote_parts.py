"""Runs on a pretended board over the local way, for the tests of the workstation's side."""

import pytest
from sshd_parts import quick_device

from tinkit.errors import TinkitError
from tinkit.host.board import connection
from tinkit.host.board.run import profile_on


def impatient(monkeypatch, tmp_path):
    """Boards that hang are waited for shortly, and the agent's cache is the test's own."""
    monkeypatch.setattr(connection, "PATIENCE_S", 0.3)
    monkeypatch.setattr(connection, "OUT_OF_STEP_S", 0.3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "its 'cache'"))


def on(far_side, bundle, tmp_path, **options):
    """A run on a pretended board; what is written goes to `out`."""
    given = {"device": quick_device(), "out": tmp_path / "out", **options}
    return profile_on("local", bundle, python=far_side, **given)


def refused(far_side, bundle, tmp_path, **options):
    """The error of such a run, which leaves no report and no process behind."""
    with pytest.raises(TinkitError) as caught:
        on(far_side, bundle, tmp_path, **options)
    assert not (tmp_path / "out").exists()
    return str(caught.value)
