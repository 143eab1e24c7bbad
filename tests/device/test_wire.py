"""Frames arrive as they were sent, whatever the stream makes of them; anything else is a FrameError and nothing more."""

import hashlib
import io
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkit.device.wire import IN_MEMORY, MAX_LINE, FrameError, Reader, StreamEnded, write_frame
from tinkit.errors import TinkitError

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.dictionaries(st.text().filter(lambda key: key != "size"), PLAIN, max_size=4)


class Pieces:
    """A stream that gives and takes a few bytes at a time, as a pipe may."""

    def __init__(self, data=b"", most=3):
        self.data, self.most = bytearray(data), most

    def write(self, data):
        self.data += bytes(data[: self.most])
        return len(data[: self.most])

    def flush(self):
        pass

    def read(self, size):
        block = bytes(self.data[: min(size, self.most)])
        del self.data[: len(block)]
        return block


def frames(*pairs):
    stream = io.BytesIO()
    for message, data in pairs:
        write_frame(stream, message, data)
    return stream.getvalue()


def reader(data):
    return Reader(io.BytesIO(data))


@given(st.lists(st.tuples(MESSAGES, st.binary(max_size=20)), max_size=3), st.integers(1, 9))
def test_what_is_written_is_read(sent, most):
    stream = Pieces(most=most)
    for message, data in sent:
        write_frame(stream, message, data)
    seen = Reader(stream)
    for message, data in sent:
        got, payload = seen.read(20)
        assert payload.read() == data
        assert got == dict(message, **({"size": len(data)} if data else {}))
    with pytest.raises(StreamEnded, match="gone"):
        seen.read()


@given(st.binary(max_size=200))
def test_no_bytes_make_it_crash(data):
    seen = reader(data)

    def read_all():
        while True:
            message, payload = seen.read(50)
            assert isinstance(message, dict)
            assert len(payload.read()) == payload.size <= 50

    with pytest.raises(FrameError):
        read_all()


def test_a_file_is_sent_in_blocks_and_saved_with_its_hash(tmp_path):
    data = os.urandom(200_000)
    (tmp_path / "sent").write_bytes(data)
    message, payload = reader(frames(({"ask": "blob"}, tmp_path / "sent"))).read(200_000)
    assert message == {"ask": "blob", "size": 200_000}
    assert payload.save(tmp_path / "kept") == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "kept").read_bytes() == data
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o600


def test_an_empty_file_says_that_it_is_empty(tmp_path):
    (tmp_path / "sent").write_bytes(b"")
    message, payload = reader(frames(({"ask": "blob"}, tmp_path / "sent"))).read()
    assert message == {"ask": "blob", "size": 0}
    assert payload.read() == b""


def test_what_was_not_read_of_a_payload_is_skipped():
    seen = reader(frames(({"a": 1}, b"x" * 100), ({"b": 2}, b"")))
    _, payload = seen.read(100)
    assert next(payload.blocks())
    assert seen.read()[0] == {"b": 2}


def test_bytes_that_were_read_before_come_first():
    data = frames(({"a": 1}, b"12345"))
    seen = Reader(io.BytesIO(data[7:]), already=data[:7])
    assert seen.waiting()
    assert seen.read(5)[1].read() == b"12345"
    assert not seen.waiting()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"hello\n", "not JSON"),
        (b"[1]\n", "not a JSON object"),
        (b'{"a": NaN}\n', "not JSON"),
        (b'{"a": "\xff"}\n', "not JSON"),
        (b"[" * 5000 + b"\n", "not JSON"),
        (b'{"size": -1}\n', "a size that is none"),
        (b'{"size": true}\n', "a size that is none"),
        (b'{"size": "5"}\n', "a size that is none"),
        (b'{"size": 6}\n123456', "more than is taken"),
        (b"x" * MAX_LINE, "longer than"),
        (b" " * MAX_LINE + b"{}\n", "longer than"),
    ],
)
def test_what_is_no_frame_is_refused(data, what):
    with pytest.raises(FrameError, match=what) as caught:
        reader(data).read(5)
    assert not isinstance(caught.value, StreamEnded)
    assert all(letter.isprintable() for letter in caught.value.seen)


def test_a_line_may_be_as_long_as_the_limit_and_no_longer():
    fits = {"a": "x" * (MAX_LINE - len('{"a":""}\n'))}
    assert reader(frames((fits, b""))).read()[0] == fits
    with pytest.raises(ValueError, match="at most"):
        frames(({"a": fits["a"] + "x"}, b""))


@pytest.mark.parametrize("data", [b"", b'{"a"', b'{"size":5}\n1234'])
def test_a_stream_that_ends_is_told_apart(data):
    with pytest.raises(StreamEnded):
        reader(data).read(5)[1].read()


def test_a_payload_for_memory_has_a_limit():
    data = frames(({}, b"x" * (IN_MEMORY + 1)))
    with pytest.raises(FrameError, match="more than is taken"):
        reader(data).read(1 << 30)[1].read()


@pytest.mark.parametrize("message", [{"size": 3}, {"a": float("nan")}, {"a": {1}}])
def test_a_programmer_hears_of_a_message_that_is_none(message):
    with pytest.raises((ValueError, TypeError)):
        frames((message, b"12345"))


def test_a_file_that_shrinks_while_it_is_sent_is_no_quiet_half(tmp_path):
    path = tmp_path / "sent"
    path.write_bytes(b"x" * 300_000)

    class Shrinking(io.BytesIO):
        def write(self, data):
            os.truncate(path, 10)
            return super().write(data)

    with pytest.raises(FrameError, match="shorter"):
        write_frame(Shrinking(), {}, path)


def test_a_full_disk_leaves_nothing_partial(tmp_path, full_disk):
    _, payload = reader(frames(({}, b"x" * 100_000))).read(100_000)
    with full_disk(), pytest.raises(OSError, match="large"):
        payload.save(tmp_path / "kept")
    assert os.listdir(tmp_path) == []


def test_a_payload_that_breaks_off_leaves_nothing_partial(tmp_path):
    _, payload = reader(b'{"size":10}\n12345').read(10)
    with pytest.raises(StreamEnded):
        payload.save(tmp_path / "kept")
    assert os.listdir(tmp_path) == []


def test_a_payload_replaces_no_file_and_follows_no_link(tmp_path):
    (tmp_path / "there").write_text("mine")
    os.symlink(tmp_path / "elsewhere", tmp_path / "link")
    for name in ("there", "link"):
        _, payload = reader(b'{"size":1}\n1').read(1)
        with pytest.raises(FileExistsError):
            payload.save(tmp_path / name)
    assert (tmp_path / "there").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()


def test_a_frame_error_is_for_users():
    assert issubclass(FrameError, TinkitError)
    assert json.loads(frames(({"a": "ä"}, b"")).decode()) == {"a": "ä"}
