"""Boards that lie: no report of theirs is written, and none of their text reaches a terminal as it is."""

import json
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from remote_parts import impatient, refused
from sshd_parts import board_bundle, fake_far_side, good_report, hop, quick_device

from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED
from tinkit.host.board import talk
from tinkit.host.board.foreign import ESCAPES, clean, parsed
from tinkit.host.board.received import checked_report, steps_of, told_error


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return board_bundle(tmp_path_factory.mktemp("board"))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch, tmp_path):
    impatient(monkeypatch, tmp_path)


# --- boards that lie ---

LIES = {
    "a file named ../x": ("tell({'tell': 'file', 'name': '../x'}, b'x')", "not asked for"),
    "an absolute file": ("tell({'tell': 'file', 'name': '/tmp/x'}, b'x')", "not asked for"),
    "a file without a name": ("tell({'tell': 'file'}, b'x')", "not asked for"),
    "a file whose name is a list": ("tell({'tell': 'file', 'name': ['report.json']}, b'x')", "not asked for"),
    "an engine nobody wants": ("tell({'tell': 'file', 'name': 'engine'}, b'x')", "not asked for"),
    "a second report": ("send_report(); send_report(); done()", "not asked for"),
    "a report of 10 GB": (
        'out(b\'{"tell": "file", "name": "report.json", "size": 10000000000}\\n\'); time.sleep(60)',
        "10000000000 bytes",
    ),
    "a report that is no JSON": ("send_report(b'no'); done()", "cannot be read"),
    "a report that is no text": ("send_report(bytes([200, 201])); done()", "cannot be read"),
    "a report nested deeply": ("send_report(b'[' * 100000); done()", "cannot be read"),
    "a report nested too deeply": (
        "send_report(b'{\"a\": ' + b'[' * 40 + b']' * 40 + b'}'); done()",
        "nested too deeply",
    ),
    "a report with NaN": ("send_report(report().replace(b'1.0', b'NaN')); done()", "no JSON number"),
    "a report with 1e999": ("send_report(report().replace(b'1.0', b'1e999')); done()", "not finite"),
    "a report with a giant number": ("send_report(report().replace(b'1.0', b'9' * 5000)); done()", "cannot be read"),
    "a report that is a list": ("send_report(b'[]'); done()", "not an object"),
    "a report of another schema": (
        "send_report(report().replace(b'tinkit-report-', b'other-')); done()",
        "another schema",
    ),
    "an empty report": ("send_report(b'{}'); done()", "another schema"),
    "no report": ("done()", "without a report"),
    "half a report": ('out(b\'{"tell": "file", "name": "report.json", "size": 9}\\nhalf\'); sys.exit(0)', "was lost"),
    "an end without a word": ("sys.exit(0)", "was lost"),
    "a killed agent": ("os.kill(os.getpid(), 9)", "was lost"),
    "an endless line": ("while True: out(b'x' * 100000)", "line is longer"),
    "no frame": ("out(b'Segmentation fault\\n'); time.sleep(60)", "not understood"),
    "another answer": ("tell({'tell': 'bye'})", "something else"),
    "an answer that is none": ("tell({'hello': 1})", "something else"),
    "a negative size": ('out(b\'{"tell": "file", "size": -1}\\n\')', "not understood"),
    "bytes behind a line": ("tell({'tell': 'say', 'line': 'x'}, b'x')", "not asked for"),
    "talk without end": ("while True: tell({'tell': 'say', 'line': 'x'})", "without end"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_board_that_lies_gets_no_report_written(tmp_path, bundle, monkeypatch, lie):
    monkeypatch.setattr(talk, "MAX_LINES", 1000)
    body, told = LIES[lie]
    script = "def lie(message):\n    " + body.replace("; ", "\n    ") + "\ntalk(profile=lie)\n"
    text = refused(fake_far_side(tmp_path / "far", script, bundle), bundle, tmp_path)
    assert told in text
    assert not (tmp_path / "x").exists()


CHANGED = {
    "another model": ({"bundle": {"model_sha256": "0" * 64}}, "another model"),
    "no model": ({"bundle": {}}, "another model"),
    "a bundle that is text": ({"bundle": "x"}, "not as reports are"),
    "an unknown key": ({"shell": "rm"}, "not as reports are"),
    "a verdict that is none": ({"verdict": "great"}, "verdict that is none"),
    "a load time in words": ({"load_ms": "quick"}, "not as reports are"),
    "a latency that is none": ({"latency": [{"batch": 1}]}, "not as reports are"),
    "a latency that is text": ({"latency": ["fast"]}, "not as reports are"),
    "a hop that is none": ({"chain": [7]}, "not as reports are"),
    "a chain without the host": ({"chain": []}, "hops of the host"),
    "a budget nobody set": (
        {"budgets": [{"name": "p95_ms", "limit": 1, "measured": 1, "verdict": "passed"}]},
        "other budgets",
    ),
    "budgets that are text": ({"budgets": ["x"]}, "not as reports are"),
    "a report without the exam": ({"chain": [hop("pytorch -> onnx").to_json()]}, "without an exam"),
    "a report without a latency": ({"latency": []}, "without a latency"),
    "a rehearsal": ({"rehearsal": "another runtime"}, "another rehearsal"),
    "notes that are an object": ({"notes": {"a": 1}}, "not as reports are"),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_report_that_does_not_fit_is_refused(tmp_path, bundle, change):
    changes, told = CHANGED[change]
    report = json.dumps(good_report(bundle, **changes)).encode()
    assert told in refused(fake_far_side(tmp_path / "far", report=report), bundle, tmp_path)


def check(bundle, tmp_path, budget=None, **changes):
    data = json.dumps(good_report(bundle, **changes)).encode()
    return checked_report(data, "board", bundle, quick_device(), budget or {}, tmp_path / "report.json")


def test_a_budget_that_the_board_left_out_is_missed(tmp_path, bundle):
    with pytest.raises(TinkitError, match="other budgets"):
        check(bundle, tmp_path, budget={"p95_ms": 3.0})
    entry = {"name": "p95_ms", "limit": 3.0, "measured": None, "verdict": PASSED, "reason": ""}
    with pytest.raises(TinkitError, match="other budgets"):
        check(bundle, tmp_path, {"p95_ms": 3}, budgets=[dict(entry, limit=300)])


def test_a_failed_host_gate_stays_failed_whatever_the_board_says(tmp_path):
    failed = board_bundle(tmp_path / "a", host_gate={"verdict": FAILED})
    assert check(failed, tmp_path).verdict == FAILED
    failed = board_bundle(tmp_path / "b", chain=[hop("pytorch -> onnx", FAILED).to_json()])
    report = check(failed, tmp_path)
    assert report.verdict == FAILED
    assert [one.verdict for one in report.chain] == [FAILED, PASSED]


def test_what_the_board_says_about_itself_is_cleaned_and_the_rest_is_ours(tmp_path, bundle):
    report = check(
        bundle,
        tmp_path,
        title="<b>",
        path="/etc/passwd",
        machine={"a\x1b[1m": ["\x9b2Jx\u202e"]},
        device={"name": "a lie"},
    )
    assert report.machine == {"a": ["x"]}
    assert (report.title, report.device["name"], report.path) == (
        "small on here",
        "here",
        str(tmp_path / "report.json"),
    )


@pytest.mark.parametrize(
    "hello",
    ["HELLO['wire'] = 2", "del HELLO['have']", "HELLO['machine'] = 1", "HELLO['free_bytes'] = 'much'", "HELLO['board'] = None",
     "HELLO['board'] = {'a': 1e300}", "x = HELLO['board']\nfor _ in range(50): x['a'] = {}; x = x['a']", "HELLO['have'] = 'x'"],
)  # fmt: skip
def test_a_hello_that_is_none(tmp_path, bundle, hello):
    text = refused(fake_far_side(tmp_path / "far", hello + "\ntalk()\n", bundle), bundle, tmp_path)
    assert "wire" in text or "hello" in text


# --- text and data of strangers ---


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]52;c;Y2xpcA==\x1b\\b", "ab"),
        ("a\x1b]8;;http://x\x1b\\b", "ab"),
        ("\x9b2Ja\x90x\x9cb", "ab"),
        ("50 %\r100 %", "50 % 100 %"),
        ("a\tb\nc", "a b c"),
        ("a\u202eb\u200bc\u2028d\ufeff", "abcd"),
        ("nul\0bell\x07", "nulbell"),
        ("\x1b(Bx\x1b=y\x1b", "xy"),
        ("Grüße, 東京 ✓", "Grüße, 東京 ✓"),
        (7, "7"),
    ],
)
def test_a_line_without_what_a_terminal_obeys(text, shown):
    assert clean(text) == shown


@given(st.text() | st.text(alphabet="\x1b\x9b[]\\;0123mJ\x07\x9c \n\r\tab\u202e"))
def test_no_text_gets_through_that_is_not_printable(text):
    shown = clean(text, 50)
    assert len(shown) <= 50
    assert all(c.isprintable() for c in shown)
    assert not ESCAPES.search(shown)


def test_a_long_line_is_cut_quickly():
    begin = time.monotonic()
    assert len(clean("\x1b]" + "x" * 10_000_000)) <= 2000
    assert len(clean("\x1b[" * 5_000_000)) <= 2000
    assert time.monotonic() - begin < 30  # a quadratic way would take hours


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(JSON | st.binary())
def test_any_report_is_refused_in_words(bundle, value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    with pytest.raises(TinkitError):
        checked_report(data, "board", bundle, quick_device(), {}, "report.json")


@given(st.sampled_from(sorted(good_report.__annotations__) or ["latency"]), JSON)
def test_nothing_else_than_words_comes_of_an_error_frame(name, value):
    assert isinstance(
        told_error({"tell": "error", "what": value, "seen": value, "exit_code": value}, "board"), TinkitError
    )
    assert isinstance(steps_of({"steps": value}), dict)
    assert set(steps_of({"steps": {"a": value}})) <= {"a"}


FIELDS = ["title", "verdict", "bundle", "device", "chain", "latency", "budgets", "load_ms", "notes", "truth", "steps", "watch",
          "scenarios", "throughput", "versions", "created", "power", "layers"]  # fmt: skip


@given(st.sampled_from(FIELDS), JSON)
def test_any_field_is_checked_without_a_crash(bundle, name, value):
    data = json.dumps({**good_report(bundle), name: value}).encode()
    try:
        report = checked_report(data, "board", bundle, quick_device(), {}, "report.json")
    except TinkitError:
        return
    assert (report.title, os.path.basename(report.path)) == ("small on here", "report.json")
    assert report.verdict in (PASSED, FAILED, NOT_JUDGED)
    assert report.chain[0].hop == "pytorch -> onnx"  # the host's own
    json.dumps(report.to_json(), allow_nan=False)


def test_parsed_says_what_it_is_about():
    with pytest.raises(TinkitError, match="a report that cannot be read"):
        parsed(b"\xff", "a report", "board")
