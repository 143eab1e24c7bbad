"""What machine this is: the conditions that stand beside every number.

Reads /proc, /sys and the driver's own library; changes nothing, starts no process. What a machine does not tell is left
out of the dict or said as "unknown", never guessed.
"""

import contextlib
import ctypes
import os
import platform
import sys

from tinkit.recipes import ARCHITECTURES


def machine(root="/"):
    """Facts about this machine as plain data; `root` is where /proc, /sys and /etc are read (tests use another)."""
    memory = _memory_bytes()
    facts = {
        "cpu": _cpu_model(root),
        "arch": architecture(root),
        "cores": os.cpu_count() or 0,
        "usable_cores": usable_cores(),
        "memory_gb": round(memory / 1e9, 1) if memory else "unknown",
        "governor": _first_line(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown",
        "virtual": "hypervisor" in _cpuinfo(root).get("flags", "").split(),
        "python": platform.python_version(),
        "os": _os_name(root),
        "kernel": platform.release(),
        "cuda_gpus": cuda_gpus(),
    }
    model = _first_line(root, "proc/device-tree/model")
    if model:
        facts["board"] = model
    return facts


def architecture(root="/"):
    """`x86_64` or `aarch64` where it is one of these by another name; else what the system says.

    Of a board that is played back it is what its own files say, where they do.
    """
    seen = (_first_line(root, "proc/sys/kernel/arch") if root != "/" else "") or platform.machine()
    return ARCHITECTURES.get(seen.lower(), seen)


def usable_cores():
    """Cores that this process may run on; fewer than there are under taskset or in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 0


def load_average():
    """Processes that wanted to run, averaged over the last minute; 0.0 where the system does not tell."""
    with contextlib.suppress(OSError, AttributeError):
        return float(os.getloadavg()[0])
    return 0.0


def peak_memory_mb():
    """The largest resident size of this process so far, in MB of 10^6 bytes: Python and all libraries included."""
    # VmHWM first: ru_maxrss of a started program also remembers the size of the one that started it.
    for line in _lines("/", "proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def cuda_gpus():
    """Names of the CUDA devices, asked of the driver; [] without a driver or a device. No context is made."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0) != 0:
            return []
        count = ctypes.c_int(0)
        if driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return []
        return [_gpu_name(driver, index) for index in range(count.value)]
    except (OSError, AttributeError):
        return []


def _gpu_name(driver, index):
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(128)
    if driver.cuDeviceGet(ctypes.byref(device), index) != 0 or driver.cuDeviceGetName(name, 128, device) != 0:
        return "unknown"
    return name.value.decode("utf-8", "replace")


def _cpu_model(root):
    info = _cpuinfo(root)
    for key in ("model name", "Model", "Hardware"):  # x86, Raspberry Pi, older Arm kernels
        if info.get(key):
            return info[key]
    if "CPU part" in info:  # Arm: numbers only, to be looked up by whoever needs the core's name
        return "Arm implementer {} part {}".format(info.get("CPU implementer", "unknown"), info["CPU part"])
    return platform.processor() or "unknown"


def _cpuinfo(root):
    """The first value of every key; the cores of a big.LITTLE machine after the first are not listed."""
    info = {}
    for line in _lines(root, "proc/cpuinfo"):
        key, colon, value = line.partition(":")
        if colon:
            info.setdefault(key.strip(), value.strip())
    return info


def _memory_bytes():
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def _os_name(root):
    for line in _lines(root, "etc/os-release"):
        if line.startswith("PRETTY_NAME="):
            return line.split("=", 1)[1].strip().strip('"')
    return platform.system() or "unknown"


def _first_line(root, path):
    return next(iter(_lines(root, path)), "")


def _lines(root, path):
    """Lines of a small text file without their ends; [] where it is not there. Device-tree strings end in NUL."""
    try:
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as handle:
            return handle.read().replace("\0", "").splitlines()
    except OSError:
        return []
