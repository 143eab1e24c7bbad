"""Files: complete or not there, whatever goes wrong; read as if a stranger wrote them; one process a folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from tinkit import files
from tinkit.errors import TinkitError


def test_atomic_writes_below_folders_that_do_not_exist_yet(tmp_path):
    files.write_text(tmp_path / "a" / "b" / "c.txt", "hello")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "hello"
    assert os.listdir(tmp_path / "a" / "b") == ["c.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_leaves_the_old_file_and_nothing_else_on_an_error(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write():
        with files.atomic(path) as partial:
            with open(partial, "w") as handle:
                handle.write("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


WRITERS = {
    "text": lambda path: files.write_text(path, "x" * 100_000),
    "npz": lambda path: files.write_npz(path, {"a": np.zeros(100_000)}),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_does_not_fit_is_a_clear_error_and_leaves_the_old_one(tmp_path, full_disk, kind):
    (tmp_path / "file").write_text("old")
    with pytest.raises(TinkitError, match="File too large") as caught, full_disk():
        WRITERS[kind](tmp_path / "file")
    assert "ulimit" in caught.value.next_step
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_a_clear_error(tmp_path):
    def write():
        with files.atomic(tmp_path / "file") as partial:
            os.symlink("/dev/full", partial)
            with open(partial, "w") as handle:
                handle.write("x" * 100_000)

    with pytest.raises(TinkitError, match="No space left") as caught:
        write()
    assert "free some space" in caught.value.next_step
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TinkitError, match="Could not finish writing"):
        files.write_text(tmp_path / "file" / "below", "text")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_a_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(TinkitError, match="Permission denied"):
        files.write_text(tmp_path / "file", "text")
    tmp_path.chmod(0o700)


def test_json_round_trip(tmp_path):
    value = {"b": [1, 2.5, None], "a": {"ü": True}}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json", "It") == value


NO_JSON = {
    "array": ("[1]", "not a JSON object"),
    "half": ("{", "cannot be read"),
    "no text": ("\udcff", "cannot be read"),
    "deep": ("[" * 100_000, "cannot be read"),
}


@pytest.mark.parametrize(("text", "said"), NO_JSON.values(), ids=NO_JSON)
def test_json_that_is_none_says_so(tmp_path, text, said):
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(TinkitError, match=f"The record .*{said}"):
        files.read_json(tmp_path / "a.json", "The record")


def test_json_that_is_missing_says_so(tmp_path):
    with pytest.raises(TinkitError, match="The record is missing"):
        files.read_json(tmp_path / "a.json", "The record")


def test_npz_round_trip(tmp_path):
    arrays = {
        "pixels": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "names": np.array(["a", "ü"]),
        "answer/x": np.zeros(0),
    }
    files.write_npz(tmp_path / "a.npz", arrays)
    seen = files.read_npz(tmp_path / "a.npz")
    assert list(seen) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(seen[name], array)
        assert seen[name].dtype == array.dtype


class Touch:
    """Unpickling it creates a file: what a pickle in an .npz can do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_npz_with_a_pickle_is_refused_and_not_run(tmp_path):
    trap = np.empty(1, object)
    trap[0] = Touch(str(tmp_path / "touched"))
    np.savez(tmp_path / "a.npz", trap=trap)
    with pytest.raises(TinkitError, match="cannot be read"):
        files.read_npz(tmp_path / "a.npz")
    assert not (tmp_path / "touched").exists()


def test_npz_larger_than_the_cap_is_refused_before_it_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(10_000_000))  # 10 kB packed
    assert os.path.getsize(tmp_path / "a.npz") < 20_000
    with pytest.raises(TinkitError, match="larger than tinkit reads"):
        files.read_npz(tmp_path / "a.npz", max_bytes=9_999_999)


@pytest.mark.parametrize("keep", [0, 3, 100, -10])
def test_npz_cut_short_is_refused(tmp_path, keep):
    files.write_npz(tmp_path / "a.npz", {"a": np.arange(100)})
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[:keep])
    with pytest.raises(TinkitError, match="cannot be read"):
        files.read_npz(tmp_path / "a.npz")


def test_npz_whose_array_header_lies_about_its_size_is_refused(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }" % 2**50
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(TinkitError):
        files.read_npz(tmp_path / "a.npz")


def test_npz_with_any_flipped_byte_never_raises_anything_but_tinkits(tmp_path):
    files.write_npz(tmp_path / "a.npz", {"a": np.arange(4)})
    whole = (tmp_path / "a.npz").read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        (tmp_path / "a.npz").write_bytes(damaged)
        with contextlib.suppress(TinkitError):  # zip keeps dates and the like, which may flip unseen
            files.read_npz(tmp_path / "a.npz")


def test_npz_that_is_a_plain_array_in_front_is_read_as_what_it_is(tmp_path):
    files.write_npz(tmp_path / "a.npz", {"a": np.arange(4)})
    np.save(tmp_path / "b.npy", np.zeros(3))
    (tmp_path / "a.npz").write_bytes((tmp_path / "b.npy").read_bytes() + (tmp_path / "a.npz").read_bytes())
    assert list(files.read_npz(tmp_path / "a.npz")) == ["a"]  # numpy alone looks at the first bytes, a zip at the last


def test_hashes_are_of_content_alone(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256_of_file(tmp_path / "a").startswith("ba7816bf8f01cfea")  # FIPS 180's example
    assert files.sha256_of_json({"a": 1, "b": [2]}) == files.sha256_of_json({"b": [2], "a": 1})
    assert files.sha256_of_json({"a": 1}) != files.sha256_of_json({"a": 2})


HOLD = """
import sys, time
from tinkit import files
with files.folder_lock(sys.argv[1], "the run"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(TinkitError, match="Another tinkit is using the run") as caught,
            files.folder_lock(tmp_path, "the run"),
        ):
            pass
        assert caught.value.seen == f"process {holder.pid}"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with files.folder_lock(tmp_path, "the run"):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_the_lock_is_free_after_use_and_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), files.folder_lock(tmp_path, "the run"):
            raise KeyError


def test_json_stays_strict_and_infinity_comes_back(tmp_path):
    def refuse(word):
        raise AssertionError(word)

    files.write_json(tmp_path / "a.json", {"worst": [float("inf"), float("nan"), 1.5]})
    value = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert value == {"worst": ["inf", "nan", 1.5]}
    assert float(value["worst"][0]) == float("inf")
