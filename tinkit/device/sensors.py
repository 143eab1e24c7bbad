"""One sample of a machine by its files in /sys and /proc: clocks, temperatures, power, throttle counters, power mode.

Root is not needed and nothing is changed. The files are looked for once and then only read, for a sampler reads them five
times a second beside the thing that is timed. A file that cannot be read or holds something else is left out; `missing`
says in words what cannot be seen on this machine, so that nobody takes silence for "did not happen".
"""

import glob
import os
import re

from tinkit.device.jetson import power_mode
from tinkit.device.tegrastats import COLDEST_C, HOTTEST_C, LARGEST_MHZ, LARGEST_MW

# devfreq's names of a Tegra's GPU: 57000000.gpu (Nano), 17000000.gv11b (Xavier), 17000000.ga10b or .gpu (Orin), gpu-gpc-0
# (Thor; gpu-nvd-0 beside it is the video engines').
GPU_DEVFREQ = re.compile(r"gpu-gpc-\d+|.*\.(gpu|gm20b|gp10b|gv11b|ga10b|gb10b)")
INTEGER = re.compile(r"\s*(-?\d{1,18})\s*", re.ASCII)
CPU_MHZ = re.compile(r"^cpu MHz\s*: (\d{1,6})(?:\.\d*)?$", re.ASCII | re.MULTILINE)
NO_RAILS = ("", "NC", "sum of shunt voltages")


def read(root="/"):
    """One sample; for many make one `Sensors` and call its `read`."""
    return Sensors(root).read()


class Sensors:
    """The files of this machine. sources: what there is to read, missing: what there is not, both lists of words."""

    def __init__(self, root="/"):
        self.root = str(root)
        self._gpu = [path for path in self._all("sys/class/devfreq/*/cur_freq") if GPU_DEVFREQ.fullmatch(_folder(path))]
        cpufreq = "sys/devices/system/cpu/cpu{}/scaling_cur_freq"
        self._cpu = self._all(cpufreq.format("freq/policy*")) or self._all(cpufreq.format("[0-9]*/cpufreq"))
        self._zones = [(_text(os.path.join(os.path.dirname(path), "type")), path) for path in self._zone_files()]
        self._rails = _first_of_each(self._ina3221() + self._ina3221x())
        self._energy = self._rapl()
        self._throttle = self._counters()
        self.sources, self.missing = self._told(self.read())

    def read(self):
        """{"gpu_mhz", "cpu_mhz": None or MHz, "temperatures_c": {zone: C}, "power_mw": {rail: mW}, "energy_uj": {domain: uJ
        since some time}, "throttle": {counter: events}, "power_mode": name or ""}.

        gpu_mhz and cpu_mhz are of the fastest part or core: idle cores say nothing about the busy one. A GPU that is off
        (0) has no clock. On Tegra the files tell the clock asked for; what hardware throttling makes of it shows in the
        counters and in tegrastats.
        """
        gpu = [hertz / 1e6 for hertz in map(_number, self._gpu) if hertz]
        cpu = [kilohertz / 1e3 for kilohertz in map(_number, self._cpu) if kilohertz]
        if not self._cpu:
            cpu = [float(mhz) for mhz in CPU_MHZ.findall(_text(self._at("proc/cpuinfo"), 1 << 20))]
        zones = ((name, _number(path)) for name, path in self._zones)
        power = ((rail, milliwatts()) for rail, milliwatts in self._rails)
        return dict(
            self.counters(),
            gpu_mhz=_largest(gpu),
            cpu_mhz=_largest(cpu),
            temperatures_c={
                name: milli / 1e3 for name, milli in zones if milli is not None and _is_temperature(milli / 1e3)
            },
            power_mw={rail: mw for rail, mw in power if mw is not None and abs(mw) <= LARGEST_MW},
            energy_uj={name: value for name, value in self._read(self._energy) if value is not None and value >= 0},
        )

    def counters(self):
        """Only what marks a measurement: throttle counters and power mode. Read right before and after one."""
        counts = {name: value for name, value in self._read(self._throttle) if value is not None and value >= 0}
        return {"throttle": counts, "power_mode": power_mode(self.root)}

    def _at(self, path):
        return os.path.join(self.root, path)

    def _all(self, pattern):
        return sorted(glob.glob(os.path.join(glob.escape(self.root), pattern)))

    def _read(self, named_paths):
        return [(name, _number(path)) for name, path in named_paths]

    def _zone_files(self):
        return self._all("sys/class/thermal/thermal_zone*/temp")

    def _ina3221(self):
        """JetPack 5 and newer: the kernel's hwmon, volts and amperes of three channels a chip."""
        chips = self._all("sys/class/hwmon/hwmon*/name") + self._all("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/name")
        folders = [os.path.dirname(path) for path in chips if _text(path) == "ina3221"]
        rails = []
        for folder in folders:
            for channel in (1, 2, 3):
                label = _text(os.path.join(folder, "in{}_label".format(channel)))
                milli = [os.path.join(folder, "{}{}_input".format(kind, channel)) for kind in ("in", "curr")]
                rails.append((label, lambda milli=milli: _product(*milli)))
        return rails

    def _ina3221x(self):
        """JetPack 4: NVIDIA's own driver, which tells milliwatts."""
        rails = []
        for path in self._all("sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*"):
            power = os.path.join(os.path.dirname(path), "in_power{}_input".format(path.rsplit("_", 1)[1]))
            rails.append((_text(path), lambda power=power: _number(power)))
        return rails

    def _rapl(self):
        """Energy counters of an x86 processor: package-0, dram, psys; not what is inside a package (core, uncore)."""
        found = []
        for path in self._all("sys/class/powercap/intel-rapl:*/energy_uj"):
            name = _text(os.path.join(os.path.dirname(path), "name"))
            if name.startswith(("package-", "psys")):
                found.append((name, path))
            elif name == "dram":
                found.append(("dram-" + _folder(path).split(":")[1], path))
        return _first_of_each(found)

    def _counters(self):
        """One counter for each package of an x86 processor (all its cores tell the same), and the Jetson's over-currents."""
        found = []
        for path in self._all("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/package_throttle_count"):
            cpu = os.path.dirname(os.path.dirname(path))
            package = _number(os.path.join(cpu, "topology/physical_package_id"))
            found.append(("package {} thermal throttle".format(package if package is not None else 0), path))
        for path in self._all("sys/class/hwmon/hwmon*/oc*_event_cnt"):
            found.append((os.path.basename(path), path))
        return _first_of_each(found)

    def _told(self, sample):
        """(sources, missing) of a first sample."""
        parts = (
            ("gpu_mhz", "GPU clock (devfreq)", "the GPU's clock: no devfreq of a Tegra's GPU"),
            ("cpu_mhz", "CPU clock", "the CPU's clock: neither cpufreq nor /proc/cpuinfo tells it"),
            ("temperatures_c", "temperatures (thermal zones)", "temperatures: no thermal zone can be read"),
            ("power_mw", "power (INA3221)", ""),
            ("energy_uj", "energy (RAPL)", "" if sample["power_mw"] else self._why_no_power()),
            ("throttle", "throttle counters", "throttle counters: throttling is only seen by falling clocks"),
            ("power_mode", "power mode", "the power mode: no nvpmodel"),
        )
        return (
            [source for part, source, _ in parts if sample[part]],
            [why for part, _, why in parts if why and not sample[part]],
        )

    def _why_no_power(self):
        if self._energy:
            return "power: the processor's energy counters (RAPL) are there, but only root may read them"
        return "power: neither an INA3221 nor a processor's energy counters (RAPL)"


def _first_of_each(named):
    seen = {}
    for name, value in named:
        if name not in NO_RAILS:
            seen.setdefault(name, value)
    return list(seen.items())


def _folder(path):
    return os.path.basename(os.path.dirname(path))


def _is_temperature(celsius):
    return COLDEST_C <= celsius <= HOTTEST_C


def _largest(clocks):
    clocks = [mhz for mhz in clocks if 0 < mhz <= LARGEST_MHZ]
    return max(clocks) if clocks else None


def _product(millivolts, milliamperes):
    volts, amperes = _number(millivolts), _number(milliamperes)
    return None if volts is None or amperes is None else volts * amperes / 1e3


def _number(path):
    found = INTEGER.fullmatch(_text(path))
    return int(found.group(1)) if found else None


def _text(path, most=64):
    """A small text file without the white space around it; "" where it cannot be read (a zone that is off says EAGAIN)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.read(descriptor, most).decode("utf-8", "replace").strip("\0 \t\r\n")
        finally:
            os.close(descriptor)
    except OSError:
        return ""
