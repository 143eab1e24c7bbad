"""What boards tell of themselves, and that no damage to their files makes it crash or be believed."""

import json
import math
import os
from pathlib import Path

import pytest
from board_parts import fake_board
from hypothesis import given
from hypothesis import strategies as st

from tinkit.device import installed, jetson
from tinkit.device.board_files import names, number, strings, text
from tinkit.device.commands import Commands
from tinkit.device.jetson import JETPACKS, board_facts, clocks_pinned, l4t_version, mode_told, power_mode, power_modes

KEYS = {
    "model", "compatible", "module", "soc", "sm", "l4t", "jetpack", "memory_mb", "tensorrt", "cuda", "power_mode",
    "power_modes", "clocks_pinned", "gpu_mhz", "cpu_mhz", "emc_mhz", "fan", "temperatures_c", "played_back",
}  # fmt: skip


@pytest.fixture
def root(tmp_path):
    return fake_board(tmp_path / "board")


def write(root, path, content):
    file = Path(root) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))


def test_an_orin_nano_tells_what_it_is(root):
    facts = board_facts(root)
    assert set(facts) == KEYS
    assert facts["model"] == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert facts["compatible"] == ["nvidia,p3768-0000+p3767-0003-super", "nvidia,p3767-0003", "nvidia,tegra234"]
    assert (facts["module"], facts["soc"], facts["sm"]) == ("p3767-0003", "tegra234", "8.7")
    assert (facts["l4t"], facts["jetpack"]) == ("36.4.7", "6.2.1")
    assert (facts["tensorrt"], facts["cuda"]) == ("10.3.0.30", "12.6")
    assert facts["memory_mb"] == round(7802880 * 1024 / 1e6)
    assert facts["power_mode"] == "25W"
    assert facts["power_modes"] == {"15W": 0, "25W": 1, "MAXN_SUPER": 2, "7W": 3}
    assert facts["gpu_mhz"] == {"now": 306.0, "min": 306.0, "max": 918.0}
    assert facts["cpu_mhz"] == {"now": 960.0, "min": 729.6, "max": 1344.0}
    assert facts["emc_mhz"] == {"now": 2133.0, "min": 204.0, "max": 3199.0}
    assert facts["fan"] == {"pwm": 69, "rpm": 1893}
    assert set(facts["temperatures_c"]) == {"cpu", "gpu", "soc0", "soc1", "soc2", "tj"}  # cv0 to cv2 are off
    assert facts["temperatures_c"]["tj"] == 50.531
    assert (facts["clocks_pinned"], facts["played_back"]) == (False, root)
    assert json.loads(json.dumps(facts)) == facts


OTHERS = {
    "nano": ("p3448-0000", "tegra210", "5.3", "32.7.1", "4.6.1", "8.2.1", "10.2", "MAXN"),
    "xavier-nx": ("p3668-0000", "tegra194", "7.2", "35.4.1", "5.1.2", "", "", "MODE_20W_6CORE"),
    "agx-orin-64gb": ("p3701-0005", "tegra234", "8.7", "36.4.3", "6.2", "10.3.0.30", "12.6", "MODE_30W"),
    "agx-thor": ("p3834-0008", "tegra264", "11.0", "38.4.0", "7.1", "", "", "120W"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_boards(tmp_path, kind):
    facts = board_facts(fake_board(tmp_path / "board", kind))
    words = ("module", "soc", "sm", "l4t", "jetpack", "tensorrt", "cuda", "power_mode")
    assert tuple(facts[word] for word in words) == OTHERS[kind]


def test_of_two_clocks_of_thor_the_graphics_clusters_count(tmp_path):
    assert board_facts(fake_board(tmp_path / "board", "agx-thor"))["gpu_mhz"]["max"] == 1386.0


def test_the_old_nano_has_its_fan_elsewhere(tmp_path):
    assert board_facts(fake_board(tmp_path / "board", "nano"))["fan"] == {"pwm": 0}


def test_this_machine_and_an_empty_one_have_every_key(tmp_path):
    here, empty = board_facts(), board_facts(str(tmp_path), Commands(tmp_path))
    assert set(here) == set(empty) == KEYS
    assert here["played_back"] == ""
    told = {key: value for key, value in empty.items() if value not in ("", [], {}, None, 0)}
    assert told == {"played_back": str(tmp_path)}
    json.dumps(here)


def test_reading_changes_nothing(root):
    def files():
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path(root).rglob("*") if path.is_file()}

    before = files()
    board_facts(root, Commands(root))
    assert files() == before


@pytest.mark.parametrize(
    ("release", "l4t", "jetpack"),
    [
        ("# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic", "36.4.4", "6.2.1"),
        ("# R36 (release), REVISION: 3.0, GCID: 1", "36.3.0", "6.0"),
        ("# R36 (release), REVISION: 9.9, GCID: 1", "36.9.9", ""),  # newer than the table: not guessed
        ("# R39 (release), REVISION: 2.1, GCID: 46758480", "39.2.1", "7.2.1"),
        ("# R32 (release), REVISION: 7.6, GCID: 38171779, BOARD: t186ref", "32.7.6", "4.6.6"),
        ("R36 (release), REVISION: 4.4", "", ""),
        ("# Rxx (release)", "", ""),
        ("", "", ""),
    ],
)
def test_the_release_and_its_jetpack(root, release, l4t, jetpack):
    write(root, "etc/nv_tegra_release", release + "\n")
    facts = board_facts(root)
    assert (facts["l4t"], facts["jetpack"]) == (l4t, jetpack)


def test_the_table_of_releases_has_the_rows_that_the_documentation_names():
    known = {"35.2.1": "5.1", "36.3.0": "6.0", "36.4.0": "6.1", "36.4.3": "6.2", "36.5.0": "6.2.2", "36.5.2": "6.2.3"}
    known.update({"38.2.0": "7.0", "38.4.0": "7.1", "39.2.0": "7.2", "39.2.1": "7.2.1", "39.2.2": "7.2.2"})
    assert {release: JETPACKS.get(release) for release in known} == known
    order = sorted(JETPACKS, key=lambda release: [int(part) for part in release.split(".")])
    versions = [[int(part) for part in JETPACKS[release].split(".")] for release in order]
    assert versions == sorted(versions)  # a newer release is never an older JetPack


@pytest.mark.parametrize(
    ("compatible", "module"),
    [
        (["nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"], "p3767-0005"),
        (["vendor,board", "nvidia,p3767-0001", "nvidia,tegra234"], "p3767-0001"),
        (["lenovo,thinkedge-se70", "nvidia,p3509-0000+p3668-0001", "nvidia,tegra194"], "p3668-0001"),
        (["nvidia,p3767", "nvidia,tegra234"], ""),
        (["raspberrypi,5-model-b", "brcm,bcm2712"], ""),
    ],
)
def test_the_module_is_told_from_its_carrier(root, compatible, module):
    write(root, "proc/device-tree/compatible", "\0".join(compatible) + "\0")
    assert board_facts(root)["module"] == module


def test_power_modes_are_names_and_their_numbers_are_looked_up(root):
    conf = (
        "# < POWER_MODEL ID=9 NAME=old >\n<POWER_MODEL ID=05 NAME=low>\n< POWER_MODEL  NAME=odd  ID=7 >\n"
        "< POWER_MODEL ID=1 >\n< POWER_MODEL NAME=nameless-id >\n< POWER_MODEL ID=x NAME=letters >\n"
        "< POWER_MODEL ID=99999 NAME=far >\n< POWER_MODEL ID=8 NAME=a\x1bb >\n< POWER_MODEL ID=6 NAME=low >\n"
    )
    write(root, "etc/nvpmodel.conf", conf)
    assert power_modes(root) == {"low": 5, "odd": 7}
    write(root, "var/lib/nvpmodel/status", "pmode:0007 fmode:quiet\n")
    assert power_mode(root) == "odd"
    write(root, "var/lib/nvpmodel/status", "pmode:0001\n")
    assert power_mode(root) == "number 1"
    assert board_facts(root)["power_mode"] == ""  # a number says nothing to anybody else


def test_where_the_files_do_not_tell_the_mode_nvpmodel_is_asked(root):
    (Path(root) / "var/lib/nvpmodel/status").unlink()
    tool = Path(root) / "usr/sbin/nvpmodel"
    tool.write_text(
        "#!/bin/sh\n[ \"$*\" = -q ] && printf 'NVPM WARN: fan mode is not set!\\nNV Power Mode: 40W\\n4\\n'\n"
    )
    assert board_facts(root)["power_mode"] == ""
    assert board_facts(root, Commands(root))["power_mode"] == "40W"


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("NV Power Mode: MAXN_SUPER\n2\n", "MAXN_SUPER"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN\n0\n", "MAXN"),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W\r\n2\r\n", "MODE_15W"),
        ("NVPM ERROR: no NV Power Mode: 15W here\n", ""),
        ("NV Power Mode: two words\n", ""),
        ("NV Power Mode: \x1b[31m\n", ""),
        ("", ""),
    ],
)
def test_what_nvpmodel_prints(said, name):
    assert mode_told(said) == name


def test_clocks_are_pinned_when_gpu_and_every_running_core_stand_still(root):
    assert clocks_pinned(root) is False
    write(root, "sys/class/devfreq/17000000.gpu/min_freq", "918000000\n")
    assert clocks_pinned(root) is False
    for core in range(5):
        write(root, "sys/devices/system/cpu/cpu{}/cpufreq/scaling_min_freq".format(core), "1344000\n")
    assert clocks_pinned(root) is False
    write(root, "sys/devices/system/cpu/cpu5/online", "0\n")  # a core that is off has no say
    assert clocks_pinned(root) is True
    write(root, "sys/class/devfreq/17000000.gpu/max_freq", "")
    assert clocks_pinned(root) is None


def test_impossible_numbers_are_left_out(root):
    write(root, "sys/class/devfreq/17000000.gpu/cur_freq", "99999999999999\n")
    write(root, "sys/class/devfreq/17000000.gpu/min_freq", "-1\n")
    write(root, "sys/class/thermal/thermal_zone0/temp", "999999999\n")
    write(root, "sys/class/thermal/thermal_zone1/type", "gpu\x1b[2J-thermal\n")
    write(root, "sys/class/hwmon/hwmon0/pwm1", "256\n")
    write(root, "sys/class/hwmon/hwmon3/rpm", "fast\n")
    facts = board_facts(root)
    assert facts["gpu_mhz"] == {"max": 918.0}
    assert set(facts["temperatures_c"]) == {"soc0", "soc1", "soc2", "tj"}
    assert facts["fan"] == {}


def test_of_dpkg_only_what_is_installed_counts(root):
    write(
        root,
        "var/lib/dpkg/status",
        "Package: tensorrt\nStatus: deinstall ok config-files\nVersion: 8.6.2.3-1\n\n"
        "Package: libnvinfer8\nStatus: install ok installed\nVersion: 8.6.2.3-1+cuda12.2\n\n"
        "Package: libnvinfer10\nStatus: install ok installed\nVersion: 10.7.0.23-1+cuda12.6\nDescription: x\n more: y\n\n"
        "Package: cuda-toolkit-12-2\nStatus: install ok installed\nVersion: 12.2.1-1\n\n"
        "Package: cuda-cudart-12-10\nStatus: install ok installed\nVersion: 12.10.1-1",
    )
    (Path(root) / "usr/local/cuda/version.json").unlink()
    facts = board_facts(root)
    assert (facts["tensorrt"], facts["cuda"]) == ("10.7.0.23", "12.10")
    assert "tensorrt" not in installed.packages(root)
    assert installed.tensorrt_version({"tensorrt": "10.3.0.30-1+cuda12.5"}) == "10.3.0.30"
    assert installed.tensorrt_version({"libnvinfer10": "unknown", "libnvinferx": "1.2.3"}) == ""


def test_pipes_folders_and_files_without_rights_are_nothing(root, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in ("pipe", "folder", "missing", "pipe/below"):
        assert text(str(tmp_path), path) == ""
        assert number(str(tmp_path), path) is None
        assert strings(str(tmp_path), path) == []
    assert names(str(tmp_path), "pipe") == []
    for path in ("etc/nv_tegra_release", "etc/nvpmodel.conf", "var/lib/dpkg/status", "proc/meminfo"):
        (Path(root) / path).unlink()
        os.mkfifo(Path(root) / path)
    facts = board_facts(root)
    assert (facts["l4t"], facts["power_modes"], facts["tensorrt"], facts["memory_mb"]) == ("", {}, "", 0)


def test_what_a_terminal_would_obey_is_not_passed_on(root):
    write(root, "proc/device-tree/model", "Jetson\x1b[31m \x07Orin\nNano\0")
    assert board_facts(root)["model"] == "Jetson[31m OrinNano"


FILES = [
    "proc/device-tree/model", "proc/device-tree/compatible", "etc/nv_tegra_release", "etc/nvpmodel.conf", "proc/meminfo",
    "var/lib/nvpmodel/status", "var/lib/dpkg/status", "usr/local/cuda/version.json", "usr/local/cuda/version.txt",
    "sys/class/devfreq/17000000.gpu/max_freq", "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq",
    "sys/devices/system/cpu/cpu1/online", "sys/class/thermal/thermal_zone0/type", "sys/class/thermal/thermal_zone0/temp",
    "sys/class/hwmon/hwmon0/name", "sys/class/hwmon/hwmon3/rpm", "sys/kernel/debug/bpmp/debug/clk/emc/rate",
]  # fmt: skip
NASTY = st.sampled_from(
    [b"", b"\0", b"-1", b"9" * 5000, b"1e309", b"nan", "\u0663\u0663".encode(), b"\xff\xfe", b"[" * 3000, b"\n" * 2000]
    + [b'{"cuda": []}', b'{"cuda": {"version": 12}}', b'"cuda"', b"pmode:", b"pmode:99999999", b"# R (release)"]
    + [b"< POWER_MODEL ID= NAME= >", b"< POWER_MODEL " + b"=" * 300 + b" >", b"< POWER_MODEL ID=1 NAME=" + b"x" * 300]
    + [b"Package: tensorrt\nStatus: install ok installed\nVersion:", b"MemTotal: " + b"9" * 40 + b" kB"]
)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return fake_board(tmp_path_factory.mktemp("damaged") / "board")


@given(st.dictionaries(st.sampled_from(FILES), st.one_of(NASTY, st.binary(max_size=200)), max_size=6))
def test_no_damage_makes_it_crash_or_believe(damaged, contents):
    kept = {path: (Path(damaged) / path).read_bytes() for path in contents if (Path(damaged) / path).exists()}
    for path, content in contents.items():
        write(damaged, path, content)
    try:
        facts = board_facts(damaged)
        l4t_version(damaged)
    finally:
        for path in contents:
            (Path(damaged) / path).unlink()
            if path in kept:
                write(damaged, path, kept[path])
    assert set(facts) == KEYS
    json.dumps(facts, allow_nan=False)
    assert facts["clocks_pinned"] in (True, False, None)
    assert facts["jetpack"] in ("",) + tuple(JETPACKS.values())
    assert facts["power_mode"] == "" or facts["power_mode"] in facts["power_modes"]
    for clocks in (facts["gpu_mhz"], facts["cpu_mhz"], facts["emc_mhz"]):
        assert all(math.isfinite(value) and 0 < value <= jetson.MAX_MHZ for value in clocks.values())
    assert all(jetson.MIN_C < value < jetson.MAX_C for value in facts["temperatures_c"].values())
    told = [facts["model"], facts["module"], facts["power_mode"], facts["tensorrt"], facts["cuda"]]
    assert all(word.isprintable() for word in told + facts["compatible"] + list(facts["temperatures_c"]))


@given(st.one_of(st.text(max_size=300), st.just("NV Power Mode:" * 1000)))
def test_no_answer_of_nvpmodel_makes_it_crash(said):
    name = mode_told(said)
    assert name == "" or (name in said and name.isprintable() and " " not in name)
