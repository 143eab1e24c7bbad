"""A machine's sensors as a few files under a folder, to be changed while they are watched."""

import os


class Machine:
    """Files under `root`; `put` writes one as the kernel would show it (whole, never half)."""

    def __init__(self, root):
        self.root = str(root)

    def put(self, path, value):
        whole = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        with open(whole + ".new", "w") as handle:
            handle.write("{}\n".format(value))
        os.replace(whole + ".new", whole)
        return self

    def gpu_mhz(self, mhz, name="17000000.gpu"):
        return self.put("sys/class/devfreq/{}/cur_freq".format(name), mhz * 1000000)

    def cpu_mhz(self, *clocks):
        for index, mhz in enumerate(clocks):
            self.put("sys/devices/system/cpu/cpu{}/cpufreq/scaling_cur_freq".format(index), mhz * 1000)
        return self

    def zone(self, index, name, milli_celsius):
        self.put("sys/class/thermal/thermal_zone{}/type".format(index), name)
        return self.put("sys/class/thermal/thermal_zone{}/temp".format(index), milli_celsius)

    def rail(self, channel, name, millivolts, milliamperes, chip="hwmon1"):
        folder = "sys/class/hwmon/{}/".format(chip)
        self.put(folder + "name", "ina3221").put(folder + "in{}_label".format(channel), name)
        self.put(folder + "in{}_input".format(channel), millivolts)
        return self.put(folder + "curr{}_input".format(channel), milliamperes)

    def over_currents(self, count, number=3):
        self.put("sys/class/hwmon/hwmon3/name", "soctherm_oc")
        return self.put("sys/class/hwmon/hwmon3/oc{}_event_cnt".format(number), count)

    def mode(self, number):
        self.put("etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >")
        return self.put("var/lib/nvpmodel/status", "pmode:{:04d} fmode:quiet".format(number))

    def tegrastats(self, script):
        """A tool of that name that runs this sh script."""
        self.put("usr/bin/tegrastats", "#!/bin/sh\n" + script)
        os.chmod(os.path.join(self.root, "usr/bin/tegrastats"), 0o700)
        return self


def orin(root):
    """A small Orin: one GPU clock, two cores, two zones (one off), two rails, an over-current counter, a power mode."""
    machine = (
        Machine(root).gpu_mhz(1020).cpu_mhz(729, 1510).zone(0, "gpu-thermal", 49000).zone(1, "cv0-thermal", -256000)
    )
    return machine.rail(1, "VDD_IN", 5000, 1000).rail(2, "VDD_SOC", 5000, 200).over_currents(7).mode(1)
