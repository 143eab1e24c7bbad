"""One sample by files: what is there is read in its unit, what is not is said, and nothing a file holds can break it."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_parts import Machine, orin

from tinkit.device import sensors, tegrastats
from tinkit.device.sensors import Sensors

NOTHING = {
    "gpu_mhz": None,
    "cpu_mhz": None,
    "temperatures_c": {},
    "power_mw": {},
    "energy_uj": {},
    "throttle": {},
    "power_mode": "",
}


def test_an_orin_in_one_sample(tmp_path):
    orin(tmp_path)
    assert sensors.read(str(tmp_path)) == {
        "gpu_mhz": 1020.0,
        "cpu_mhz": 1510.0,  # the fastest core: idle ones say nothing about the busy one
        "temperatures_c": {"gpu-thermal": 49.0},
        "power_mw": {"VDD_IN": 5000.0, "VDD_SOC": 1000.0},
        "energy_uj": {},
        "throttle": {"oc3_event_cnt": 7},
        "power_mode": "25W",
    }


def test_what_cannot_be_seen_is_said(tmp_path):
    assert sensors.read(str(tmp_path)) == NOTHING
    bare = Sensors(tmp_path)
    assert bare.sources == []
    assert [text.split(":")[0] for text in bare.missing] == [
        "the GPU's clock",
        "the CPU's clock",
        "temperatures",
        "power",
        "throttle counters",
        "the power mode",
    ]
    seen = Sensors(orin(tmp_path).root)
    assert seen.missing == []
    assert len(seen.sources) == 6


def test_this_machine_can_be_sampled():
    sample = sensors.read()
    assert set(sample) == set(NOTHING)
    json.dumps(sample, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("57000000.gpu", 921.0),
        ("17000000.gv11b", 921.0),
        ("17000000.ga10b", 921.0),
        ("gpu-gpc-0", 921.0),
        ("gpu-nvd-0", None),  # Thor's video engines
        ("15340000.vic", None),
    ],
)
def test_which_devfreq_is_the_gpu(tmp_path, name, seen):
    Machine(tmp_path).gpu_mhz(921, name)
    assert sensors.read(tmp_path)["gpu_mhz"] == seen


def test_a_gpu_that_is_off_has_no_clock(tmp_path):
    assert sensors.read(Machine(tmp_path).gpu_mhz(0).root)["gpu_mhz"] is None


def test_clocks_of_a_pc_without_cpufreq(tmp_path):
    Machine(tmp_path).put("proc/cpuinfo", "cpu MHz\t\t: 2600.5\ncpu MHz\t\t: 3100.0\n")
    assert sensors.read(tmp_path)["cpu_mhz"] == 3100.0


def test_jetpack_4_tells_milliwatts(tmp_path):
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/"
    Machine(tmp_path).put(folder + "rail_name_0", "POM_5V_IN").put(folder + "in_power0_input", 1750)
    assert sensors.read(tmp_path)["power_mw"] == {"POM_5V_IN": 1750}


def test_a_chip_that_is_found_twice_counts_once_and_sums_are_no_rails(tmp_path):
    machine = orin(tmp_path).rail(3, "sum of shunt voltages", 1, 1)
    again = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/"
    machine.put(again + "name", "ina3221").put(again + "in1_label", "VDD_IN").put(again + "in1_input", 1)
    machine.put(again + "curr1_input", 1)
    assert sensors.read(tmp_path)["power_mw"] == {"VDD_IN": 5000.0, "VDD_SOC": 1000.0}


def test_energy_counters_of_a_pc(tmp_path):
    machine, folder = Machine(tmp_path), "sys/class/powercap/intel-rapl:"
    for index, name, value in [
        ("0", "package-0", 5000000),
        ("0:0", "core", 9),
        ("0:1", "dram", 70),
        ("1", "package-1", 8),
    ]:
        machine.put(folder + index + "/name", name).put(folder + index + "/energy_uj", value)
    assert sensors.read(tmp_path)["energy_uj"] == {"package-0": 5000000, "package-1": 8, "dram-0": 70}


def test_energy_counters_that_only_root_may_read_are_told_so(tmp_path):
    path = "sys/class/powercap/intel-rapl:0/"
    Machine(tmp_path).put(path + "name", "package-0").put(path + "energy_uj", "")  # reads as nothing, as for others
    assert (
        "power: the processor's energy counters (RAPL) are there, but only root may read them"
        in Sensors(tmp_path).missing
    )


def test_throttle_counters_are_one_for_each_package(tmp_path):
    machine = Machine(tmp_path)
    for cpu, package, count in [(0, 0, 3), (1, 0, 3), (2, 1, 5)]:
        folder = "sys/devices/system/cpu/cpu{}/".format(cpu)
        machine.put(folder + "thermal_throttle/package_throttle_count", count)
        machine.put(folder + "topology/physical_package_id", package)
    assert sensors.read(tmp_path)["throttle"] == {"package 0 thermal throttle": 3, "package 1 thermal throttle": 5}
    machine.put("sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count", 4)
    assert Sensors(tmp_path).counters()["throttle"]["package 0 thermal throttle"] == 4


def test_a_pipe_in_place_of_a_file_does_not_hold_it_up(tmp_path):
    orin(tmp_path)
    path = os.path.join(tmp_path, "sys/class/thermal/thermal_zone0/temp")
    os.unlink(path)
    os.mkfifo(path)
    assert sensors.read(tmp_path)["temperatures_c"] == {}


FILES = (
    "sys/class/devfreq/17000000.gpu/cur_freq",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq",
    "sys/class/thermal/thermal_zone0/temp",
    "sys/class/thermal/thermal_zone0/type",
    "sys/class/hwmon/hwmon1/in1_input",
    "sys/class/hwmon/hwmon1/curr1_input",
    "sys/class/hwmon/hwmon1/in1_label",
    "sys/class/hwmon/hwmon3/oc3_event_cnt",
    "var/lib/nvpmodel/status",
)


@given(
    st.lists(st.tuples(st.sampled_from(FILES), st.binary(max_size=70) | st.integers().map(lambda n: str(n).encode())))
)
def test_whatever_the_files_hold_the_sample_is_finite_and_bounded(tmp_path_factory, contents):
    root = orin(tmp_path_factory.mktemp("board")).root
    for path, content in contents:
        with open(os.path.join(root, path), "wb") as handle:
            handle.write(content)
    sample = Sensors(root).read()
    json.dumps(sample, allow_nan=False)
    assert all(0 < (sample[part] or 1) <= tegrastats.LARGEST_MHZ for part in ("gpu_mhz", "cpu_mhz"))
    assert all(-60 <= celsius <= 250 for celsius in sample["temperatures_c"].values())
    assert all(abs(milliwatts) <= tegrastats.LARGEST_MW for milliwatts in sample["power_mw"].values())
    assert all(count >= 0 for count in sample["throttle"].values())
