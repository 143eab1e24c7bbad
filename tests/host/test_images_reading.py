"""Patient reading, under a clock of our own: a share that comes back, one that stays away, and what is final at once."""

import errno

import pytest

from tinkit.errors import TinkitError
from tinkit.host.images import Picture
from tinkit.host.images.reading import LONGEST_PAUSE_S, TRIES_OF_A_BAD_DISK, patiently


class Clock:
    def __init__(self):
        self.now, self.pauses = 100.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


class Share:
    """Fails with `number` until the clock says `until`."""

    def __init__(self, clock, number, until):
        self.clock, self.number, self.until, self.calls = clock, number, until, 0

    def __call__(self):
        self.calls += 1
        if self.clock.now < self.until:
            raise OSError(self.number, "gone for a while")
        return b"data"


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN])
def test_a_share_that_is_away_for_a_minute_is_waited_for(number):
    clock, said = Clock(), []
    share = Share(clock, number, clock.now + 60)
    assert patiently(share, "/mnt/a.jpg", clock=clock, sleep=clock.sleep, say=said.append) == b"data"
    assert clock.pauses == sorted(clock.pauses)
    assert clock.pauses[-1] == LONGEST_PAUSE_S
    assert share.calls < 15
    assert ["waiting" in said[0], "is there again, after" in said[1], len(said)] == [True, True, 2]


def test_a_share_that_stays_away_is_said():
    clock = Clock()
    share = Share(clock, errno.ESTALE, clock.now + 1e9)
    with pytest.raises(TinkitError, match="stayed away") as caught:
        patiently(share, "/mnt/a.jpg", clock=clock, sleep=clock.sleep)
    assert clock.now == 220  # its limit to the second
    assert (caught.value.where, "120 s" in caught.value.seen) == ("/mnt/a.jpg", True)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EISDIR, errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG])
def test_what_waiting_does_not_mend_is_final_at_once(number):
    clock = Clock()
    with pytest.raises(OSError, match="gone for a while"):
        patiently(Share(clock, number, 1e9), "x", clock=clock, sleep=clock.sleep)
    assert clock.pauses == []


def test_a_missing_file_is_final_while_its_folder_is_there_and_waited_for_when_all_is_gone(tmp_path):
    clock, root = Clock(), tmp_path / "share"
    root.mkdir()
    (root / "other.jpg").touch()

    def read():
        return (root / "a.jpg").read_bytes()

    with pytest.raises(FileNotFoundError):
        patiently(read, "a.jpg", clock=clock, sleep=clock.sleep, root=str(root))
    assert clock.pauses == []

    away = root.rename(tmp_path / "away")

    def sleep(seconds):
        clock.sleep(seconds)
        if len(clock.pauses) == 3:
            (away / "a.jpg").write_bytes(b"data")
            away.rename(root)

    assert patiently(read, "a.jpg", clock=clock, sleep=sleep, root=str(root)) == b"data"
    assert len(clock.pauses) == 3


def test_a_bad_disk_that_still_answers_gets_a_few_tries(tmp_path):
    (tmp_path / "other.jpg").touch()
    clock = Clock()
    share = Share(clock, errno.EIO, 1e9)
    with pytest.raises(OSError, match="gone for a while"):
        patiently(share, "a.jpg", clock=clock, sleep=clock.sleep, root=str(tmp_path))
    assert share.calls == TRIES_OF_A_BAD_DISK


def test_a_picture_is_read_and_knows_its_root(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jpg").write_bytes(b"bytes")
    picture = Picture(str(tmp_path / "deep" / "a.jpg"), "deep/a.jpg", "")
    assert picture.read() == b"bytes"
    assert picture.container == picture.path
    with pytest.raises(FileNotFoundError):
        Picture(str(tmp_path / "deep" / "b.jpg"), "deep/b.jpg", "").read()
