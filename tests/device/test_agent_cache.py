"""The agent's folder: nobody else's, swept, never removed under another agent, and never without the records of a change."""

import hashlib
import io
import os
import subprocess
import sys
import threading

import pytest

from tinkit.device import agent_cache
from tinkit.device.agent_cache import AgentCache
from tinkit.device.turn import Turn
from tinkit.device.wire import Reader
from tinkit.errors import TinkitError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "tinkit" / "agent"


def keep(cache, data):
    sha256 = hashlib.sha256(data).hexdigest()
    cache.keep(sha256, Reader(io.BytesIO(b'{"size":%d}\n' % len(data) + data)).read(1 << 20)[1])
    return sha256


def test_a_folder_is_made_for_this_user_alone_and_removed_whole(folder):
    with AgentCache(folder) as cache:
        keep(cache, b"123")
        run = cache.new_run()
        assert all(os.stat(path).st_mode & 0o777 == 0o700 for path in (folder, run, folder / "blobs"))
        assert cache.close(remove=True) == (True, 0.0)
    assert not folder.parent.exists()
    assert folder.parent.parent.exists()


@pytest.mark.parametrize("place", ["link", "others", "shared", "parent"])
def test_a_folder_that_is_not_ours_alone_is_refused(folder, place):
    folder.mkdir(parents=True)
    folder.chmod(0o700)
    if place == "link":
        folder.rename(folder.parent / "real")
        folder.symlink_to(folder.parent / "real")
    elif place == "others":
        folder.chmod(0o750)
    elif place == "shared":
        folder.parent.parent.chmod(0o1777)
    else:
        folder.parent.chmod(0o777)
    with pytest.raises(TinkitError, match="nobody else"):
        AgentCache(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(folder):
    folder.mkdir(parents=True, mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(TinkitError, match="nobody else") as caught:
        AgentCache(folder)
    assert "12345" in caught.value.seen


def test_what_a_killed_agent_left_is_swept_by_the_next_that_is_alone(folder):
    with AgentCache(folder) as first:
        sha256 = keep(first, b"123")
        (folder / "blobs" / ("b" * 64 + ".99.partial")).touch()
        run = first.new_run()
        with AgentCache(folder) as second:
            assert second.swept == []
            assert os.path.isdir(run)
    with AgentCache(folder) as third:
        assert len(third.swept) == 2
        assert third.have() == [sha256]
        assert os.listdir(folder / "runs") == []


def test_more_than_the_disk_has_is_refused_before_it_is_written(folder, monkeypatch):
    with AgentCache(folder) as cache:
        monkeypatch.setattr(cache, "free_bytes", lambda: 2)
        keep(cache, b"12")
        with pytest.raises(TinkitError, match="disk of the board is full"):
            keep(cache, b"123")
        assert len(os.listdir(folder / "blobs")) == 1


def test_kept_files_are_bounded_and_the_last_used_stay(folder, monkeypatch):
    monkeypatch.setattr(agent_cache, "MOST_BLOBS", 3)
    monkeypatch.setattr(agent_cache, "MOST_BYTES", 25)
    with AgentCache(folder) as cache:
        kept = [keep(cache, bytes([number]) * 10) for number in range(4)]
        for age, sha256 in enumerate(kept):
            os.utime(folder / "blobs" / sha256, (1e9 - age, 1e9 - age))
        cache.place(kept[3], str(folder / "used"))
        cache.close(remove=False)
    with AgentCache(folder) as cache:
        assert cache.have() == [kept[3], kept[0]]


def test_the_record_of_a_changed_board_outlives_all_cleaning(folder):
    with AgentCache(folder) as cache:
        keep(cache, b"123")
        (folder / "pinned" / "state.json").write_text("{}")
        removed, left_mb = cache.close(remove=True)
    assert not removed
    assert left_mb < 0.001
    assert [str(path.relative_to(folder)) for path in folder.rglob("*")] == ["pinned", "pinned/state.json"]


def test_agents_that_come_and_go_never_remove_what_another_uses(folder):
    troubles = []

    def come_and_go(number):
        try:
            for turn in range(25):
                with AgentCache(folder) as cache:
                    sha256 = keep(cache, b"%d %d" % (number, turn))
                    run = cache.new_run()
                    cache.place(sha256, os.path.join(run, "bundle", "model.onnx"))
                    assert sha256 in cache.have()
                    cache.remove_run(run)
                    cache.close(remove=True)
        except BaseException as error:
            troubles.append(error)
            raise

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert troubles == []
    assert not folder.exists() or os.listdir(folder / "blobs") == []


def test_the_turn_is_one_and_names_its_holder():
    name = f"test-turn-{os.getpid()}"
    first, second = Turn(name), Turn(name)
    assert first.take()
    assert first.take()
    assert not second.take()
    assert second.holder().startswith(f"process {os.getpid()} of user ")
    first.give()
    assert second.take()
    second.give()
    assert Turn(name).holder() == "a process that does not tell its number"


def test_the_turn_ends_with_its_process():
    name = f"test-turn-{os.getpid()}-dies"
    code = f"from tinkit.device.turn import Turn; t = Turn({name!r}); print(t.take(), flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"True\n"
    assert not Turn(name).take()
    process.kill()
    process.communicate()
    again = Turn(name)
    assert again.take()
    again.give()
