"""The arithmetic of tinkit.device.watch: what the samples of one window of time say, and why its numbers are marked.

A record is a line of the sampler: {"t": seconds, "files": {...}} or {"t", "tegrastats": {...}} with the words of
sensors.read. A window is {"name", "begin", "end", "before", "after"}: seconds of the same clock, Sensors.counters around it.
Where files and tegrastats both tell something, the files are believed; for a falling clock each is asked.
"""

from statistics import mean, median

FELL = 0.95  # a clock below this part of what it ran at in the first second ...
OFTEN = 0.1  # ... in more than this part of the window's samples
FIRST_S = 1.0
SOURCES = (("files", "INA3221 by its files"), ("tegrastats", "tegrastats"))


def describe(window, records):
    """One entry of the summary's "windows" (see Watch.summary): plain data, {} and None where nothing was told."""
    inside = _inside(window, records)
    return {
        "name": window["name"],
        "seconds": round(window["end"] - window["begin"], 6),
        "samples": len(_told(inside, "files")),
        "gpu_mhz": _spread([mhz for _, mhz in _clock(inside, "gpu_mhz")]),
        "cpu_mhz": _spread([mhz for _, mhz in _clock(inside, "cpu_mhz")]),
        "temperature_c": _temperatures(inside),
        "power_w": dict(_power(inside), **_energy(inside)),
        "throttle_events": _events(window),
    }


def reasons(window, records, uses):
    """Why the numbers of this window are not those of an undisturbed machine, in words. uses: "gpu" or "cpu"."""
    inside = _inside(window, records)
    return _throttled(window) + _mode_changes(window, inside) + _fell(window, inside, uses)


def _throttled(window):
    before, after = window["before"]["throttle"], window["after"]["throttle"]
    rises = {name: after[name] - before[name] for name in sorted(before) if after.get(name, 0) > before[name]}
    return ["throttled: {} rose by {}".format(name, count) for name, count in rises.items()]


def _events(window):
    before, after = window["before"]["throttle"], window["after"]["throttle"]
    counts = [after[name] - before[name] for name in before if name in after]
    return sum(count for count in counts if count > 0) if counts else None


def _mode_changes(window, inside):
    modes = [window["before"]["power_mode"]]
    modes += [sample["power_mode"] for _, sample in _told(inside, "files")] + [window["after"]["power_mode"]]
    modes = [mode for mode in modes if mode]
    changes = [(old, new) for old, new in zip(modes, modes[1:]) if old != new]
    return ["the power mode changed from {} to {}".format(old, new) for old, new in changes]


def _fell(window, inside, uses):
    told = []
    for source, _ in SOURCES:
        clocks = _series(inside, source, uses + "_mhz")
        if not told and len(clocks) > 1:
            told = _fall_of(clocks, window, uses.upper())
    return told


def _fall_of(clocks, window, name):
    """A window shorter than two seconds is compared with its first half instead of its first second."""
    settled = window["begin"] + min(FIRST_S, (window["end"] - window["begin"]) / 2)
    reference = median([mhz for when, mhz in clocks if when <= settled] or [clocks[0][1]])
    low = [mhz for when, mhz in clocks if when > settled and mhz < FELL * reference]
    if len(low) <= OFTEN * len(clocks):
        return []
    sentence = "throttled: the {}'s clock fell below {:.0%} of its first second's {:.0f} MHz in {:.0%} of the samples, to {:.0f}"
    return [sentence.format(name, FELL, reference, len(low) / len(clocks), min(low))]


def _inside(window, records):
    return [record for record in records if window["begin"] <= record.get("t", -1.0) <= window["end"]]


def _told(inside, source):
    return [(record["t"], record[source]) for record in inside if source in record]


def _series(inside, source, part):
    return [(when, sample[part]) for when, sample in _told(inside, source) if sample.get(part)]


def _clock(inside, part):
    return next(filter(None, (_series(inside, source, part) for source, _ in SOURCES)), [])


def _spread(values):
    if not values:
        return {}
    return {"median": round(median(values), 1), "min": round(min(values), 1), "max": round(max(values), 1)}


def _temperatures(inside):
    for source, _ in SOURCES:
        zones = {}
        for _, sample in _series(inside, source, "temperatures_c"):
            for zone, celsius in sample.items():
                zones.setdefault(zone, []).append(celsius)
        if zones:
            return {zone: {"first": seen[0], "last": seen[-1], "max": max(seen)} for zone, seen in zones.items()}
    return {}


def _power(inside):
    """Watts of each rail, of the first source that tells it."""
    rails = {}
    for source, words in SOURCES:
        watts = {}
        for _, sample in _series(inside, source, "power_mw"):
            for rail, milliwatts in sample.items():
                watts.setdefault(rail, []).append(milliwatts / 1e3)
        for rail, values in watts.items():
            rails.setdefault(rail, _watts(mean(values), values, words))
    return rails


def _energy(inside):
    """Watts of each energy counter between its samples. Where a counter started anew (it has 32 bits) is left out."""
    rails = {}
    samples = _series(inside, "files", "energy_uj")
    for name in samples[0][1] if samples else ():
        points = [(when, sample[name]) for when, sample in samples if name in sample]
        steps = [
            (later - earlier, (high - low) / 1e6)
            for (earlier, low), (later, high) in zip(points, points[1:])
            if high >= low and later > earlier
        ]
        if steps:
            average = sum(joules for _, joules in steps) / sum(seconds for seconds, _ in steps)
            rails[name] = _watts(average, [joules / seconds for seconds, joules in steps], "energy counters (RAPL)")
    return rails


def _watts(average, values, source):
    return {
        "mean": round(average, 4),
        "median": round(median(values), 4),
        "max": round(max(values), 4),
        "samples": len(values),
        "source": source,
    }
