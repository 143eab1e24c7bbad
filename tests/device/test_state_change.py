"""A board's state is changed only when allowed, and is as it was afterwards, also when the process was killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from board_parts import ask_for_reboot, fake_board, ran_as_root, refuse_sudo, write_tool
from hypothesis import given
from hypothesis import strategies as st

import tinkit
from tinkit.device import state_file
from tinkit.device.commands import Commands
from tinkit.device.jetson import board_facts, clocks_pinned, power_mode
from tinkit.device.state_change import NeedsReboot, StateChange
from tinkit.errors import TinkitError


@pytest.fixture
def root(tmp_path):
    return fake_board(tmp_path / "board")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "state"


@pytest.fixture
def change(root, folder):
    return StateChange(Commands(root), folder, True, root)


def state(root):
    """Everything on the board that a change could touch."""
    files = [path for name in ("sys", "etc", "var/lib") for path in (Path(root) / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_text() for path in files if path.name != "scaling_cur_freq"}


def moving(root):
    """The same without the clocks of this moment."""
    return {path: text for path, text in state(root).items() if not path.endswith(("cur_freq", "emc/rate"))}


def test_a_mode_is_changed_by_name_and_put_back(root, folder, change):
    before = moving(root)
    assert change.set_mode("MAXN_SUPER") == "power mode MAXN_SUPER (was 25W)"
    assert (power_mode(root), board_facts(root)["gpu_mhz"]["max"]) == ("MAXN_SUPER", 1020.0)
    assert ran_as_root(root) == ["nvpmodel -m 2"]
    assert change.restore() == ["power mode is 25W again"]
    assert moving(root) == before
    assert ran_as_root(root) == ["nvpmodel -m 2", "nvpmodel -m 1"]
    assert os.listdir(folder) == []
    assert change.restore() == []
    assert len(ran_as_root(root)) == 2


def test_numbers_follow_the_board_and_not_the_name(root, change):
    conf = Path(root) / "etc/nvpmodel.conf"
    conf.write_text(conf.read_text().replace("ID=0 NAME=15W", "ID=6 NAME=15W"))
    change.set_mode("15W")
    assert ran_as_root(root) == ["nvpmodel -m 6"]
    assert power_mode(root) == "15W"


def test_a_mode_may_be_named_as_other_releases_spell_it(root, change):
    conf = Path(root) / "etc/nvpmodel.conf"
    conf.write_text(conf.read_text().replace("NAME=15W", "NAME=MODE_15W"))
    assert change.set_mode("15W") == "power mode MODE_15W (was 25W)"


def test_clocks_are_stored_pinned_and_put_back(root, folder, change):
    before = state(root)
    assert change.pin_clocks() == "clocks pinned by jetson_clocks"
    assert clocks_pinned(root) is True
    [stored] = [name for name in os.listdir(folder) if name != "state.json"]
    path = str(folder / stored)
    assert ran_as_root(root) == ["jetson_clocks --store " + path, "jetson_clocks"]
    assert change.restore() == ["clocks are as they were"]
    assert ran_as_root(root)[2:] == ["jetson_clocks --restore " + path]
    assert {path: text for path, text in state(root).items() if not path.endswith("cur_freq")} == {
        path: text for path, text in before.items() if not path.endswith("cur_freq")
    }
    assert os.listdir(folder) == []


@pytest.mark.parametrize("order", [("mode", "clocks"), ("clocks", "mode")])
def test_both_are_put_back_the_last_first(root, change, order):
    before = moving(root)
    for what in order:
        change.set_mode("15W") if what == "mode" else change.pin_clocks()
    assert len(change.restore()) == 2
    assert moving(root) == before
    assert clocks_pinned(root) is False


def test_what_is_so_already_is_left_as_found(root, folder, change):
    assert change.set_mode("25W") == "power mode 25W (as found)"
    Commands(root).run(["jetson_clocks"], sudo=True)
    assert change.pin_clocks() == "clocks pinned (as found)"
    assert ran_as_root(root) == ["jetson_clocks"]
    assert not folder.exists()


def test_clocks_that_somebody_pinned_are_pinned_after_a_change_of_the_mode(root, change):
    Commands(root).run(["jetson_clocks"], sudo=True)
    before = moving(root)
    change.set_mode("15W")
    assert clocks_pinned(root) is False
    change.restore()
    assert (clocks_pinned(root), moving(root)) == (True, before)


def test_nothing_is_changed_that_is_not_allowed(root, folder):
    change, before = StateChange(Commands(root), folder, False, root), state(root)
    for attempt in (lambda: change.set_mode("15W"), change.pin_clocks):
        with pytest.raises(TinkitError) as caught:
            attempt()
        assert "--allow-state-change" in caught.value.next_step
    assert (state(root), ran_as_root(root), folder.exists()) == (before, [], False)


def test_restoring_needs_no_second_permission(root, folder, change):
    change.set_mode("15W")
    assert StateChange(Commands(root), folder, False, root).restore() == ["power mode is 25W again"]


@pytest.mark.parametrize(
    "name", ["", "1", "-1", "--help", "15W; reboot", "$(reboot)", "15W\n", "25w", "15W 2", "MODE_15W"]
)
def test_a_name_that_the_board_does_not_have_never_reaches_a_tool(root, folder, change, name):
    with pytest.raises(TinkitError, match="no power mode of this name") as caught:
        change.set_mode(name)
    assert "15W, 25W, MAXN_SUPER, 7W" in caught.value.next_step
    assert (ran_as_root(root), folder.exists()) == ([], False)


@given(st.text(max_size=20).filter(lambda name: name not in ("15W", "25W", "MAXN_SUPER", "7W")))
def test_no_text_is_a_mode_but_the_modes(shared, name):
    with pytest.raises(TinkitError, match="no power mode"):
        shared.set_mode(name)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    root = fake_board(tmp_path_factory.mktemp("shared") / "board")
    return StateChange(Commands(root), os.path.join(root, "state"), True, root)


def test_a_hostile_configuration_gives_a_number_and_nothing_else(root, change):
    conf = Path(root) / "etc/nvpmodel.conf"
    conf.write_text(conf.read_text() + "< POWER_MODEL ID=--force NAME=bad >\n< POWER_MODEL ID=2;reboot NAME=worse >\n")
    for name in ("bad", "worse"):
        with pytest.raises(TinkitError, match="no power mode of this name"):
            change.set_mode(name)
    assert ran_as_root(root) == []


def test_without_the_right_nothing_changes_and_the_line_for_sudoers_is_told(root, folder, change):
    refuse_sudo(root)
    before = state(root)
    for attempt in (lambda: change.set_mode("15W"), change.pin_clocks):
        with pytest.raises(TinkitError) as caught:
            attempt()
        assert caught.value.seen == "sudo: a password is required"
        tools = "NOPASSWD: {0}/usr/sbin/nvpmodel, {0}/usr/bin/jetson_clocks".format(root)
        assert tools in caught.value.next_step
        assert "visudo" in caught.value.next_step
    assert (state(root), os.listdir(folder)) == (before, [])


def test_a_mode_that_needs_a_reboot_is_refused_and_nothing_is_rebooted(root, folder, change):
    ask_for_reboot(root, 3)
    before = state(root)
    with pytest.raises(NeedsReboot, match="7W needs a reboot") as caught:
        change.set_mode("7W")
    assert "nvpmodel -m 3" in caught.value.next_step
    assert not (Path(root) / "var/log/rebooted").exists()
    assert (state(root), os.listdir(folder)) == (before, [])
    assert change.set_mode("15W") == "power mode 15W (was 25W)"


def test_the_board_to_play_back_would_reboot_when_told_yes(root):
    ask_for_reboot(root, 3)
    tool = os.path.join(root, "usr/sbin/nvpmodel")
    subprocess.run([os.path.join(root, "usr/bin/sudo"), "-n", "--", tool, "-m", "3"], input=b"yes\n", check=True)
    assert (Path(root) / "var/log/rebooted").exists()  # so the test above can fail


def test_nvpmodels_word_is_not_taken_for_a_change(root, folder, change):
    write_tool(root, "usr/sbin/nvpmodel", "[ \"$1\" = -q ] && printf 'NV Power Mode: 25W\\n1\\n'; exit 0\n")
    with pytest.raises(TinkitError, match="Changing the power mode to 15W failed"):
        change.set_mode("15W")
    assert os.listdir(folder) == []


def test_a_mode_that_cannot_be_gone_back_to_is_not_left(root, folder, change):
    (Path(root) / "var/lib/nvpmodel/status").write_text("pmode:0009\n")
    with pytest.raises(TinkitError, match="the one to go back to is not known"):
        change.set_mode("15W")
    assert not [line for line in ran_as_root(root) if "-m" in line]


def test_pinning_that_fails_half_way_is_undone(root, folder, change):
    real = (Path(root) / "usr/bin/jetson_clocks").read_text()
    script = 'if [ $# = 0 ]; then root=$(cd "$(dirname "$0")/../.." && pwd); echo 1 >"$root/sys/class/devfreq/17000000.gpu/min_freq"; exit 1; fi\n'  # noqa: E501
    write_tool(root, "usr/bin/jetson_clocks", script + real)
    before = state(root)
    change.set_mode("15W")
    with pytest.raises(TinkitError, match="Pinning the clocks failed"):
        change.pin_clocks()
    assert board_facts(root)["gpu_mhz"]["min"] == 306.0
    assert power_mode(root) == "15W"  # of the clocks only: the mode was changed before, and well
    change.restore()
    assert {path: text for path, text in state(root).items() if path in before} == before


def test_clocks_that_cannot_be_stored_are_not_pinned(root, folder, change):
    write_tool(root, "usr/bin/jetson_clocks", 'case "$1" in --store) exit 0 ;; "") echo pinned >>/dev/stderr ;; esac\n')
    with pytest.raises(TinkitError, match="Storing the clocks failed"):
        change.pin_clocks()
    assert len(ran_as_root(root)) == 1
    assert os.listdir(folder) == []


@pytest.mark.parametrize("name", ["two words", "a;b", "$(id)", "star*", "quote'"])
def test_a_folder_that_a_shell_would_split_is_not_given_to_jetson_clocks(root, tmp_path, name):
    change = StateChange(Commands(root), tmp_path / name / "state", True, root)
    with pytest.raises(TinkitError, match="cannot be given a file in this folder"):
        change.pin_clocks()
    assert ran_as_root(root) == []


CHANGES = """
import os, signal, sys
from tinkit.device.commands import Commands
from tinkit.device.state_change import StateChange
root, folder = sys.argv[1:]
change = StateChange(Commands(root), folder, True, root)
change.set_mode("15W")
change.pin_clocks()
print("changed", flush=True)
sys.stdin.readline()
"""


def changing(root, folder):
    """Another process that changed the board and waits; (process)."""
    environment = dict(os.environ, PYTHONPATH=str(Path(tinkit.__file__).parents[1]))
    words = [sys.executable, "-c", CHANGES, root, str(folder)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"changed\n"
    return process


def ended(process):
    process.stdin.close()
    process.stdout.close()
    return process.wait(10)


def test_after_a_kill_another_process_puts_everything_back(root, folder):
    before = moving(root)
    assert StateChange.left_behind(folder) is None
    process = changing(root, folder)
    try:
        assert (power_mode(root), clocks_pinned(root)) == ("15W", True)
        assert StateChange.left_behind(folder) is None  # it still runs
        with pytest.raises(TinkitError, match="a run that is going on") as caught:
            StateChange(Commands(root), folder, True, root).restore()
        assert str(process.pid) in caught.value.seen
    finally:
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    record = StateChange.left_behind(folder)  # not waited for yet: dead all the same
    assert [step["kind"] for step in record["steps"]] == ["mode", "clocks"]
    assert record["pid"] == process.pid
    assert ended(process) == -signal.SIGKILL
    assert StateChange.left_behind(folder) == record

    with pytest.raises(TinkitError, match="An earlier run left the board changed"):
        StateChange(Commands(root), folder, True, root).set_mode("MAXN_SUPER")
    notes = StateChange(Commands(root), folder, False, root).restore()
    assert notes == ["clocks are as they were", "power mode is 25W again"]
    assert moving(root) == before
    assert (StateChange.left_behind(folder), os.listdir(folder)) == (None, [])


def killed(root, folder):
    process = changing(root, folder)
    process.kill()
    ended(process)


def test_a_later_process_of_the_same_number_is_not_taken_for_the_dead_one(root, folder):
    killed(root, folder)
    path = folder / "state.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(dict(record, pid=os.getpid())))
    assert StateChange.left_behind(folder) is not None  # our number, but we were started at another time
    path.write_text(json.dumps(dict(record, pid=os.getpid(), started=state_file._started(os.getpid()))))
    assert StateChange.left_behind(folder) is None


def test_after_a_reboot_only_the_mode_is_put_back(root, folder):
    killed(root, folder)
    path = folder / "state.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), boot="another boot")))
    done = len(ran_as_root(root))
    notes = StateChange(Commands(root), folder, True, root).restore()
    assert notes == ["the board was rebooted: its clocks move again", "power mode is 25W again"]
    assert ran_as_root(root)[done:] == ["nvpmodel -m 1"]
    assert os.listdir(folder) == []


def test_what_cannot_be_put_back_stays_for_the_next_time(root, folder, change):
    change.set_mode("15W")
    change.pin_clocks()
    refuse_sudo(root)
    with pytest.raises(TinkitError, match="Restoring the clocks failed"):
        change.restore()
    assert len(json.loads((folder / "state.json").read_text())["steps"]) == 2
    refuse_sudo(root, False)
    assert len(change.restore()) == 2
    assert power_mode(root) == "25W"


def test_one_thing_that_cannot_be_put_back_does_not_keep_the_others(root, folder, change):
    change.set_mode("15W")
    change.pin_clocks()
    [stored] = [name for name in os.listdir(folder) if name != "state.json"]
    (folder / stored).unlink()
    with pytest.raises(TinkitError, match="restoring the clocks"):
        change.restore()
    assert power_mode(root) == "25W"
    assert [step["kind"] for step in json.loads((folder / "state.json").read_text())["steps"]] == ["clocks"]


def test_a_mode_that_somebody_else_chose_meanwhile_is_left(root, change):
    change.set_mode("15W")
    Commands(root).run(["nvpmodel", "-m", "2"], sudo=True)
    assert change.restore() == ["power mode is MAXN_SUPER, which somebody else set: left as it is"]
    assert power_mode(root) == "MAXN_SUPER"


def test_stored_clocks_that_are_a_link_are_not_given_to_root(root, folder, change, tmp_path):
    change.pin_clocks()
    [stored] = [name for name in os.listdir(folder) if name != "state.json"]
    (folder / stored).rename(tmp_path / "elsewhere")
    (folder / stored).symlink_to(tmp_path / "elsewhere")
    done = len(ran_as_root(root))
    with pytest.raises(TinkitError, match="not ours"):
        change.restore()
    assert len(ran_as_root(root)) == done


def test_the_record_is_written_before_the_board_is_changed(root, folder, change):
    real = (Path(root) / "usr/sbin/nvpmodel").read_text()
    look = 'if [ "$1" = -m ]; then cp {}/state.json {}/seen.json; fi\n'.format(folder, root)
    write_tool(root, "usr/sbin/nvpmodel", look + real)
    change.set_mode("15W")
    [step] = json.loads((Path(root) / "seen.json").read_text())["steps"]
    assert step == {"kind": "mode", "from": "25W", "to": "15W", "pinned": False}


def test_where_the_record_cannot_be_written_nothing_is_changed(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TinkitError, match="making the folder"):
        StateChange(Commands(root), tmp_path / "file" / "state", True, root).set_mode("15W")
    assert ran_as_root(root) == []


def test_a_folder_that_others_can_write_is_refused(root, folder, change):
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(TinkitError, match="nobody else can write"):
        change.set_mode("15W")
    assert ran_as_root(root) == []
    folder.chmod(0o700)
    change.set_mode("15W")
    assert (folder.stat().st_mode & 0o777, power_mode(root)) == (0o700, "15W")
    (folder / "state.json").chmod(0o666)
    with pytest.raises(TinkitError, match="nobody else can write"):
        change.restore()


def test_the_folder_is_made_for_this_user_alone(folder, change):
    change.set_mode("15W")
    assert folder.stat().st_mode & 0o777 == 0o700


GOOD = {"version": 1, "pid": 1, "started": "", "boot": "", "when": "", "steps": []}
STEP = {"kind": "clocks", "file": "clocks-1-2.conf", "stored": True}
DAMAGED = [
    "", "[]", "{", '"x"', "[" * 3000, "{}", dict(GOOD, version=2), dict(GOOD, pid=0), dict(GOOD, pid="1"), dict(GOOD, more=1),
    dict(GOOD, pid=True), dict(GOOD, steps={}), dict(GOOD, steps=[1]), dict(GOOD, steps=[{"kind": "reboot"}]),
    dict(GOOD, steps=[{"kind": []}]), dict(GOOD, steps=[dict(STEP, file="../../etc/passwd")]),
    dict(GOOD, steps=[dict(STEP, file="clocks-1-2.conf\n")]), dict(GOOD, steps=[dict(STEP, stored=1)]),
    dict(GOOD, steps=[{"kind": "mode", "from": 1, "to": "", "pinned": False}]), dict(GOOD, steps=[STEP] * 17),
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_is_told_and_not_acted_on(root, folder, change, content):
    folder.mkdir(parents=True, mode=0o700)
    (folder / "state.json").write_text(content if isinstance(content, str) else json.dumps(content))
    for attempt in (change.restore, lambda: StateChange.left_behind(folder), lambda: change.set_mode("15W")):
        with pytest.raises(TinkitError, match="record of the board's state"):
            attempt()
    assert ran_as_root(root) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, *STEP, "from"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.fixed_dictionaries(dict.fromkeys(GOOD, JSON)))
def test_no_record_makes_it_crash(record):
    assert state_file._sound(record) in (True, False)
    if state_file._sound(record):
        assert state_file.running(record) in (True, False)


def test_a_board_without_nvpmodel_tells_so(tmp_path, folder):
    root = tmp_path / "empty"
    root.mkdir()
    change = StateChange(Commands(root), folder, True, str(root))
    with pytest.raises(TinkitError) as caught:
        change.set_mode("15W")
    assert "tells no power modes" in caught.value.next_step
    with pytest.raises(TinkitError, match="Storing the clocks failed"):
        change.pin_clocks()
