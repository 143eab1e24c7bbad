"""The report's sections on the board: what it is, what it did while something was timed, power, layers, steps, bytes.

The words come from the board itself, so nothing is believed to be of the right kind: what is no number is no number, what
is not there is said in one line with its reason, and the template escapes the rest. A board that was played back from a
folder is named before anything else on the page.
"""

from typing import Any

from tinkit.host.report import plots
from tinkit.host.report.text import MOST_ROWS, NOT_RECORDED, finite, number, short, table, tables, text, texts
from tinkit.host.report.timing import name_of
from tinkit.results import Report

PIECES = (("Model", "model"), ("Module", "module"), ("System on chip", "soc"), ("SM", "sm"), ("JetPack", "jetpack"),
          ("L4T", "l4t"), ("TensorRT", "tensorrt"), ("CUDA", "cuda"), ("Power mode", "power_mode"))  # fmt: skip
CLOCKS = (("GPU clock", "gpu_mhz"), ("CPU clock", "cpu_mhz"), ("Memory clock", "emc_mhz"))
PINNED = {True: "pinned", False: "not pinned"}
UNKNOWN = "not told"
LEAST_WINDOWS = 3  # of a line over windows
LAYERS = 20
NODES = 3  # of a fused layer that are written out
ON_THE_BOARD = ("run", "work", "wait")  # steps that hold others


def board_of(facts: Report) -> dict[str, Any]:
    """What the template shows of the board and its state."""
    board = facts.board
    told, untold = _facts(board)
    return {
        "played_back": text(board.get("played_back")),
        "facts": told,
        "untold": untold,
        "changed": changes_of(board),
        "throttled": _throttled(facts),
        "temperatures": _temperatures(board),
        "no_temperatures": "the board tells none" if board else "the report has no facts of the board",
        "watch": _watch(facts),
        "power": _power(facts.power),
        "energy_mj": number(facts.power.get("energy_mj")),
        "layers": _layers(facts.layers),
        "steps": _steps(facts.steps),
        "transfer": _transfer(facts.transfer),
    }


def changes_of(board: dict) -> list[str]:
    """What was another one after the measurement than before: mode and clocks, in words."""
    after = table(board.get("after"))
    if not after:
        return []
    told = {"power mode": lambda seen: text(seen.get("power_mode")), "clocks": clocks_told}
    return [
        f"{what}: {of(board) or UNKNOWN} before, {of(after) or UNKNOWN} after"
        for what, of in told.items()
        if of(board) != of(after)
    ]


def clocks_told(board: dict) -> str:
    pinned = board.get("clocks_pinned")
    return PINNED[pinned] if isinstance(pinned, bool) else UNKNOWN


def _facts(board: dict) -> tuple[list[tuple[str, str]], list[str]]:
    """([(what, in words)], names of what is not told)."""
    rows = [(title, text(board.get(key))) for title, key in PIECES]
    rows.append(("Clocks", clocks_told(board).replace(UNKNOWN, "")))
    rows += [(title, _clock(table(board.get(key)))) for title, key in CLOCKS]
    fan, memory = table(board.get("fan")), number(board.get("memory_mb"))
    speed = [f"{short(fan['pwm'])} of 255" if finite(fan.get("pwm")) else "", f"{short(fan['rpm'])} turns a minute" if
             finite(fan.get("rpm")) else ""]  # fmt: skip
    rows += [("Fan", ", ".join(filter(None, speed))), ("Memory", f"{short(memory)} MB" if memory else "")]
    return [row for row in rows if row[1]], [title for title, words in rows if not words]


def _clock(clock: dict) -> str:
    now, low, high = (number(clock.get(key)) for key in ("now", "min", "max"))
    told = [f"{short(now)} MHz" if now else "", f"allowed {short(low)} to {short(high)}" if low and high else ""]
    return ", ".join(filter(None, told))


def _temperatures(board: dict) -> list[tuple[str, str, str]]:
    """[(zone, before, after)] in degrees Celsius."""
    before, after = table(board.get("temperatures_c")), table(table(board.get("after")).get("temperatures_c"))
    zones = list(dict.fromkeys([*before, *after]))[:MOST_ROWS]
    return [(zone, *(_celsius(seen.get(zone)) for seen in (before, after))) for zone in zones]


def _celsius(value) -> str:
    return f"{value:.1f}" if finite(value) else "not read"


def _watch(facts: Report) -> dict[str, Any]:
    watch, rails = facts.watch, text(facts.power.get("rail")).split(" + ")
    windows = [_window(window, rails) for window in tables(watch.get("windows"))]
    lines = {"Median clock, MHz": ("gpu", "cpu"), "Hottest zone at the end, °C": ("hottest",), "Power, W": ("power",)}
    charts = []
    for title, names in lines.items():
        series = {name: [window["values"][name] for window in windows] for name in names}
        series = {name: values for name, values in series.items() if sum(value is not None for value in values) > 1}
        if series and len(windows) >= LEAST_WINDOWS:
            charts.append((title, plots.line_chart(title, series, range(1, len(windows) + 1), "window")))
    return {
        "windows": windows,
        "sources": texts(watch.get("sources")),
        "missing": texts(watch.get("missing")),
        "interval": text(watch.get("interval_s"), NOT_RECORDED),
        "charts": charts,
    }


def _throttled(facts: Report) -> list[str]:
    """Windows whose throttle counters rose, other than those of a latency: these have marks of their own."""
    timed = {name_of(run) for run in facts.latency}
    told = [_window(window, []) for window in tables(facts.watch.get("windows"))]
    return [
        f"{one['name']}: {one['throttled']} throttle events"
        for one in told
        if one["events"] and one["name"] not in timed
    ]


def _window(window: dict, rails: list[str]) -> dict[str, Any]:
    zones = {zone: table(seen) for zone, seen in table(window.get("temperature_c")).items()}
    zones = {zone: seen for zone, seen in zones.items() if finite(seen.get("max"))}
    hottest = max(zones, key=lambda zone: zones[zone]["max"], default=None)
    seen = zones.get(hottest, {})
    power = {rail: number(table(watts).get("mean")) for rail, watts in table(window.get("power_w")).items()}
    known = {rail: watts for rail, watts in list(power.items())[:MOST_ROWS] if watts is not None}
    whole = sum(known[rail] for rail in rails) if all(rail in known for rail in rails) else None
    gpu, cpu = table(window.get("gpu_mhz")), table(window.get("cpu_mhz"))
    ends = f"{_celsius(seen.get('first'))} to {_celsius(seen.get('last'))}, at most {_celsius(seen.get('max'))}"
    events = number(window.get("throttle_events"))
    return {
        "name": text(window.get("name"), NOT_RECORDED),
        "seconds": text(window.get("seconds"), NOT_RECORDED),
        "samples": text(window.get("samples"), NOT_RECORDED),
        "gpu": _spread(gpu),
        "cpu": _spread(cpu),
        "hottest": f"{hottest}: {ends}" if hottest else "not read",
        "power": [f"{rail}: {watts:.2f} W" for rail, watts in known.items()] or ["not read"],
        "throttled": "no counter" if events is None else short(events) if events else "none",
        "events": bool(events),
        "values": {
            "gpu": number(gpu.get("median")),
            "cpu": number(cpu.get("median")),
            "hottest": number(seen.get("last")),
            "power": whole,
        },
    }


def _spread(clock: dict) -> str:
    median, low, high = (number(clock.get(key)) for key in ("median", "min", "max"))
    if median is None:
        return "not read"
    return (
        short(median)
        if low is None or high is None or low == high
        else f"{short(median)} ({short(low)} to {short(high)})"
    )


def _power(power: dict) -> dict[str, Any]:
    if not text(power.get("source")):
        return {"missing": text(power.get("note"), "the report does not say why").removeprefix("no energy: ")}
    told = (("Rail", "rail", ""), ("Source", "source", ""), ("Idle", "idle_w", " W"), ("Under load, batch 1", "load_w", " W"),
            ("Energy of a picture", "energy_mj", " mJ"), ("Energy of a picture, above idle", "energy_above_idle_mj", " mJ"),
            ("How", "note", ""))  # fmt: skip
    rows = []
    for title, key, unit in told:
        value = text(power.get(key))
        rows.append((title, value + unit if value else "not measured"))
    return {"rows": rows}


def _layers(layers: dict) -> dict[str, Any]:
    """The slowest layers; bars are drawn against the largest share."""
    top = tables(layers.get("top"), LAYERS)
    if not top:
        return {"missing": text(layers.get("note"), "no layer profile was asked for, or the runtime tells none")}
    most = max([share for share in (number(layer.get("share")) for layer in top) if share], default=1.0)
    peaks = table(layers.get("peaks"))
    rates = {name: number(rate) for name, rate in table(peaks.get("ops_per_s")).items()}
    bandwidth = number(peaks.get("bytes_per_s"))
    roof = [
        (f"Peak of {name}", f"{rate / 1e12:.3g} tera-operations a second" if rate else UNKNOWN)
        for name, rate in rates.items()
    ]
    roof.append(("Memory", f"{bandwidth / 1e9:.3g} GB/s" if bandwidth else UNKNOWN))
    roof.append(("Source", text(peaks.get("source"), NOT_RECORDED)))
    named = number(layers.get("named_share"))
    how = [
        ("Runtime", text(layers.get("runtime"), NOT_RECORDED)),
        ("Runs", text(layers.get("runs"), NOT_RECORDED)),
        ("Batch", text(layers.get("batch"), NOT_RECORDED)),
        ("Layers altogether", text(layers.get("layers"), NOT_RECORDED)),
        ("Of the time, in layers with known ONNX nodes", f"{named:.1%}" if named is not None else NOT_RECORDED),
    ]
    return {
        "top": [_layer(layer, most) for layer in top],
        "how": how,
        "roof": roof,
        "note": text(layers.get("note")),
    }


def _layer(layer: dict, most: float) -> dict[str, Any]:
    share, times, least = (number(layer.get(key)) for key in ("share", "times_the_bound", "least_ms"))
    nodes = texts(layer.get("nodes"))
    more = f" and {len(nodes) - NODES} more" if len(nodes) > NODES else ""
    name = text(layer.get("layer"), NOT_RECORDED)
    return {
        "name": name,
        "nodes": ""
        if nodes == [name]
        else ", ".join(nodes[:NODES]) + more
        if nodes
        else text(layer.get("note"), "nodes not known"),
        "type": text(layer.get("type"), UNKNOWN),
        "ms": text(layer.get("ms"), NOT_RECORDED),
        "share": f"{share:.1%}" if share is not None else NOT_RECORDED,
        "width": f"{100 * min(max((share or 0.0) / most, 0.0), 1.0):.1f}%",
        "bound": text(layer.get("bound"), "unknown"),
        "least": short(least) if least else "unknown",
        "times": f"{times:.3g}" if times is not None else "unknown",
    }


def _steps(steps: dict) -> dict[str, Any]:
    known = {
        str(name): float(seconds)
        for name, seconds in list(steps.items())[:MOST_ROWS]
        if finite(seconds) and seconds >= 0
    }
    longest = max(known.values(), default=0.0) or 1.0
    held = [name for name in ON_THE_BOARD[:2] if name in known]
    return {
        "rows": [(name, short(seconds), f"{100 * seconds / longest:.1f}%") for name, seconds in known.items()],
        "held": " and ".join(held),
    }


def _transfer(transfer: dict) -> list[tuple[str, str]]:
    named = {"sent_bytes": "Bytes sent", "received_bytes": "Bytes received", "files_sent": "Files sent", "files_there":
             "Files that were there already"}  # fmt: skip
    return [(words, text(transfer.get(key), NOT_RECORDED)) for key, words in named.items()] if transfer else []
