"""tegrastats: every form that boards have printed, and any text at all."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkit.device import tegrastats
from tinkit.device.tegrastats import Reading, parse_line, total_rail

DATA = Path(__file__).parents[1] / "data" / "boards" / "tegrastats"
LINES = {entry["name"]: entry["line"] for entry in json.loads((DATA / "lines.json").read_text())}
AGX_ORIN = ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]
AGX_XAVIER = ["GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"]


def in_bounds(reading):
    numbers = [reading.ram_mb, reading.swap_mb, reading.gpu_percent, reading.emc_percent, *reading.gpu_mhz]
    numbers += [number for core in reading.cpu if core for number in core]
    numbers += [*reading.temperatures_c.values(), *reading.power_mw.values()]
    assert all(math.isfinite(number) for number in numbers if number is not None)
    assert all(0 <= mhz <= tegrastats.LARGEST_MHZ for mhz in reading.gpu_mhz)
    assert all(0 <= core[0] <= 100 and 0 <= (core[1] or 0) <= tegrastats.LARGEST_MHZ for core in reading.cpu if core)
    assert all(0 <= (percent or 0) <= 100 for percent in (reading.gpu_percent, reading.emc_percent))
    assert all(0 <= (size or 0) <= tegrastats.LARGEST_MB for size in (reading.ram_mb, reading.swap_mb))
    assert all(-60 <= celsius <= 250 for celsius in reading.temperatures_c.values())
    assert all(abs(power) <= tegrastats.LARGEST_MW for power in reading.power_mw.values())
    assert max(map(len, (reading.cpu, reading.gpu_mhz, reading.temperatures_c, reading.power_mw))) <= tegrastats.MOST
    return True


# What each line says, read by eye: RAM, swap, GPU %, GPU MHz, cores (on, all), EMC %, zones, first rail, rails of the whole.
SAID = {
    "tx1-jp3": (1179, None, 0, [76], (4, 4), 7, 8, ("VDD_IN", 2532), ["VDD_IN"]),
    "tx2-jp4": (2344, 0, 0, [624], (4, 6), 4, 8, ("VDD_SYS_GPU", 152), ["VDD_IN"]),
    "nano-jp4": (1923, 191, 0, [76], (4, 4), 0, 6, ("POM_5V_IN", 1750), ["POM_5V_IN"]),
    "xavier-nx-jp4": (5246, 983, 0, [1109], (6, 6), 2, 6, ("VDD_IN", 6140), ["VDD_IN"]),
    "xavier-nx-jp5": (3168, 161, 0, [114], (6, 6), 2, 6, ("VDD_IN", 2763), ["VDD_IN"]),
    "agx-xavier-jp4": (721, 0, 0, [318], (4, 8), 0, 8, ("GPU", 0), AGX_XAVIER),
    "orin-nx-jp5": (6334, 491, 0, [611], (4, 8), 0, 9, ("VDD_IN", 5299), ["VDD_IN"]),
    "orin-nano-jp6": (3162, 0, 1, [], (4, 6), None, 6, ("VDD_IN", 3913), ["VDD_IN"]),
    "agx-orin-jp5": (1282, 0, 0, [0, 0], (12, 12), 0, 7, ("VDD_GPU_SOC", 2399), AGX_ORIN),
    "agx-orin-jp6": (18207, 86, 0, [0, 0], (12, 12), 3, 5, ("VDD_GPU_SOC", 2412), AGX_ORIN),
    "agx-orin-jp72": (20642, None, 12, [1300, 1300], (12, 12), 3, 4, ("VDD_GPU_SOC", 5139), AGX_ORIN),
    "thor-jp71": (4280, 0, None, [0, 0, 0], (14, 14), 0, 4, ("VDD_GPU", 0), ["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"]),
    "thor-jp72": (9091, 0, None, [314] * 3, (14, 14), 7, 5, ("VDD_GPU", 4925), ["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"]),
    "thor-kit-vin": (8353, None, 87, [1574] * 3, (3, 4), None, 3, ("VDD_GPU", 37939), ["VIN"]),
    "orin-nano-load": (3347, 0, 61, [1016], (4, 6), 3, 6, ("VDD_IN", 8912), ["VDD_IN"]),
}  # fmt: skip


def test_every_line_is_expected():
    assert set(SAID) == set(LINES)


@pytest.mark.parametrize("name", SAID)
def test_recorded_and_composed_lines(name):
    reading = parse_line(LINES[name])
    rails, _ = total_rail(reading.power_mw)
    cores = (sum(core is not None for core in reading.cpu), len(reading.cpu))
    seen = (reading.ram_mb, reading.swap_mb, reading.gpu_percent, reading.gpu_mhz, cores, reading.emc_percent)
    assert (*seen, len(reading.temperatures_c), next(iter(reading.power_mw.items())), rails) == SAID[name]
    assert in_bounds(reading)


@pytest.mark.parametrize(
    ("text", "percent", "mhz"),
    [
        ("GR3D_FREQ 61%", 61, []),
        ("GR3D_FREQ 61%@1016", 61, [1016]),
        ("GR3D_FREQ 61%@[1016,1015]", 61, [1016, 1015]),
        ("GR3D_FREQ @[1016]", None, [1016]),
        ("GR3D_FREQ @1016", None, [1016]),
        ("GR3D_FREQ 10%@114 GR3D2_FREQ 40%@115", 40, [114, 115]),
        ("GR3D_FREQ off", None, []),
        ("GR3D_FREQ 101%@99999", None, []),  # no such load, no such clock
        ("GR3D_FREQ", None, []),
    ],
)
def test_forms_of_the_gpu(text, percent, mhz):
    assert parse_line(text) == Reading(gpu_percent=percent, gpu_mhz=mhz)


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("CPU [21%@1510,off]", [(21, 1510), None]),
        ("CPU [21%,off]@1510", [(21, 1510), None]),
        ("cpu [17%,5%]@408", [(17, 408), (5, 408)]),
        ("CPU [0%,0%]", [(0, None), (0, None)]),
        ("CPU [bad,101%@5,3%@99999]", [None, None, (3, None)]),
        ("CPU []", [None]),
    ],
)
def test_forms_of_the_cores(text, cores):
    assert parse_line(text) == Reading(cpu=cores)


@pytest.mark.parametrize(
    ("text", "rails"),
    [
        ("VDD_IN 8912mW/7421mW", {"VDD_IN": 8912}),
        ("VDD_IN 5336/4970", {"VDD_IN": 5336}),
        ("VDD_IN 8912mW/7421mW/9000mW", {"VDD_IN": 8912}),
        ("VDD_GPU 5517mW VIN 28548mW", {"VDD_GPU": 5517, "VIN": 28548}),
        ("VDD_GPU -392mW/-392mW", {"VDD_GPU": -392}),  # an offset of the sensor, as seen on Thor
        ("NC 0mW/0mW VDD_IN 1mW/1mW NC 5mW/5mW", {"VDD_IN": 1}),
        ("RAM 1/2 SWAP 3/4 foo 5/6", {}),  # no unit and no name of a rail
        ("VDD_IN 99999999mW/1mW", {}),
        ("VDD_IN nanmW/1mW VDD_SOC 1e9mW/1mW", {}),
        ("APE 174 VIC_FREQ 729", {}),
    ],
)
def test_forms_of_power(text, rails):
    assert parse_line(text).power_mw == rails


def test_zones_that_are_off_are_left_out_and_limits_are_not_taken_for_temperatures():
    reading = parse_line("cv0@-256C cpu@52.968C/53.5C GPU@49C tj@-5.5C x@1e3C y@999C")
    assert reading.temperatures_c == {"cpu": 52.968, "GPU": 49.0, "tj": -5.5}


def test_of_a_name_that_comes_twice_the_first_counts():
    assert parse_line("VDD_IN 1mW/1mW VDD_IN 2mW/2mW cpu@1C cpu@2C").power_mw == {"VDD_IN": 1}
    assert parse_line("RAM 1/2MB RAM 3/4MB").ram_mb == 1


@pytest.mark.parametrize(
    ("names", "rails", "said"),
    [
        (["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0", "VIN"], ["VIN"], "carrier"),
        (["POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"], ["POM_5V_IN"], "whole board"),
        (["VDD_CPU_GPU_CV", "VDD_IN", "VDD_SOC"], ["VDD_IN"], "module"),
        ([*AGX_ORIN, "VDDQ_VDD2_1V8AO"], AGX_ORIN, "AGX Orin"),  # the memory's rail is fed by VIN_SYS_5V0
        (AGX_XAVIER, AGX_XAVIER, "AGX Xavier"),
        (["VDD_GPU_SOC", "VDD_CPU_CV"], ["VDD_CPU_CV", "VDD_GPU_SOC"], "unknown board"),  # one of three is missing
        (["package-0", "package-1", "dram-0"], ["dram-0", "package-0", "package-1"], "energy counters"),
        (["package-0"], ["package-0"], "memory not included"),
        (["package-0", "psys"], ["psys"], "platform"),
        ([], [], "no power rail"),
    ],
)
def test_the_rail_of_the_whole(names, rails, said):
    seen, words = total_rail(names)
    assert seen == rails
    assert said in words


@given(st.text())
def test_any_text_is_read_without_a_crash(text):
    assert in_bounds(parse_line(text))


@given(st.sampled_from(sorted(LINES)), st.lists(st.tuples(st.integers(0, 900), st.text(max_size=6)), max_size=8))
def test_a_damaged_line_is_read_without_a_crash(name, damage):
    line = LINES[name]
    for place, text in damage:
        line = line[:place] + text + line[place + 1 :]
    assert in_bounds(parse_line(line))


WORDS = st.sampled_from(["CPU", "GPU", "RAM", "GR3D_FREQ", "EMC_FREQ", "VDD_IN", "VIN", "NC", "off", "cpu@", "@", "mW"])
NUMBERS = st.builds(
    "{}{}".format, st.integers(-(10**20), 10**20), st.sampled_from(["", "%", "mW", "/9", "C", "%@9", "MB"])
)


@given(st.lists(WORDS | NUMBERS | st.text(max_size=5), max_size=60))
def test_any_row_of_its_own_words_is_read_within_bounds(words):
    assert in_bounds(parse_line(" ".join(words)))


def test_a_line_without_end_is_cut():
    assert in_bounds(parse_line("CPU [" + "1%@2," * 10**5 + "]"))
    assert in_bounds(parse_line(" ".join("VDD_{} {}mW/1mW".format(index, index) for index in range(10**4))))
    assert in_bounds(parse_line(" ".join("z{}@5C".format(index) for index in range(10**4))))
