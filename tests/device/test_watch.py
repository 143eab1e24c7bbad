"""Watching: the sampler is another process that ends with its parent, and a disturbed window is marked, no other."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from board_parts import fake_board
from sensor_parts import Machine, orin

import tinkit
from tinkit.device import sampler, windows
from tinkit.device.commands import Commands
from tinkit.device.watch import Watch, power

PACKAGE = Path(tinkit.__file__).parent
FAST = 0.01
CALM = {"throttle": {"oc3_event_cnt": 7}, "power_mode": "25W"}


def window(name="load", begin=0.0, end=10.0, before=None, after=None):
    return {"name": name, "begin": begin, "end": end, "before": before or CALM, "after": after or CALM}


def records(clocks, part="gpu_mhz", source="files", interval=0.1, **more):
    """One record each `interval` seconds from 0.05 s on."""
    return [
        {"t": 0.05 + index * interval, source: dict({part: mhz, "power_mode": "25W"}, **more)}
        for index, mhz in enumerate(clocks)
    ]


def wait_until(true, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def is_running(pid):
    try:
        with open("/proc/{}/stat".format(pid)) as handle:
            return handle.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# The rules, on composed samples.


@pytest.mark.parametrize(
    ("low", "samples", "marked"),
    [
        (950, 50, False),  # 5 % below the first second's clock is still the same
        (949, 50, True),
        (949, 10, False),  # a tenth of the samples is not more than a tenth
        (949, 11, True),
    ],
)
def test_a_falling_clock_marks_just_outside_its_limits(low, samples, marked):
    seen = windows.reasons(window(), records([1000] * (100 - samples) + [low] * samples), "gpu")
    assert bool(seen) == marked
    if marked:
        assert "GPU's clock fell" in seen[0]
        assert "1000 MHz" in seen[0]
        assert str(low) in seen[0]


def test_only_the_clock_of_the_processor_that_is_used_marks():
    falling = records([1000] * 50 + [500] * 50)
    assert windows.reasons(window(), falling, "gpu") != []
    assert windows.reasons(window(), falling, "cpu") == []
    assert windows.reasons(window(), records([1000] * 50 + [500] * 50, "cpu_mhz"), "cpu") != []


def test_a_clock_that_rises_in_the_first_second_marks_nothing():
    assert windows.reasons(window(), records([300, 300] + [1000] * 98), "gpu") == []


def test_a_fall_that_only_tegrastats_tells_marks_too():
    steady, falling = records([1020] * 100), records([1020] * 50 + [400] * 50, source="tegrastats")
    assert windows.reasons(window(), sorted(steady + falling, key=lambda record: record["t"]), "gpu") != []


def test_a_short_window_is_compared_with_its_first_half():
    assert windows.reasons(window(end=0.4), records([1000, 1000, 700, 700]), "gpu") != []


def test_a_gpu_that_was_off_is_not_a_fall():
    assert windows.reasons(window(), records([1000] * 50 + [None] * 50), "gpu") == []
    assert windows.describe(window(), records([None] * 3))["gpu_mhz"] == {}


def test_samples_of_other_windows_do_not_mark():
    samples = records([1000] * 100) + [{"t": 10.5 + index, "files": {"gpu_mhz": 1}} for index in range(50)]
    assert windows.reasons(window(), samples, "gpu") == []
    assert windows.describe(window(), samples)["gpu_mhz"] == {"median": 1000, "min": 1000, "max": 1000}


def test_counters_and_modes_belong_to_the_window_around_which_they_changed():
    after = {"throttle": {"oc3_event_cnt": 12}, "power_mode": "15W"}
    assert windows.reasons(window(after=after), [], "gpu") == [
        "throttled: oc3_event_cnt rose by 5",
        "the power mode changed from 25W to 15W",
    ]
    assert windows.describe(window(after=after), [])["throttle_events"] == 5
    assert windows.reasons(window(before=after, after=after), [], "gpu") == []
    silent = {"throttle": {}, "power_mode": ""}
    assert windows.describe(window(before=silent, after=silent), [])["throttle_events"] is None  # not 0: nobody looked


def test_a_mode_that_was_changed_and_changed_back_inside_is_seen():
    samples = records([1000] * 3)
    samples[1]["files"]["power_mode"] = "15W"
    told = windows.reasons(window(), samples, "gpu")
    assert told == ["the power mode changed from 25W to 15W", "the power mode changed from 15W to 25W"]


def test_temperatures_and_power_of_a_window():
    samples = records([1000] * 3)
    for record, celsius, milliwatts in zip(samples, (40.0, 52.0, 50.0), (4000, 9000, 5000)):
        record["files"].update(temperatures_c={"tj": celsius}, power_mw={"VDD_IN": milliwatts})
    extra = [{"t": 1.0, "tegrastats": {"power_mw": {"VDD_IN": 1, "VIN": 7000}, "temperatures_c": {"x": 1.0}}}]
    seen = windows.describe(window(), samples + extra)
    assert seen["temperature_c"] == {"tj": {"first": 40.0, "last": 50.0, "max": 52.0}}
    files = {"mean": 6.0, "median": 5.0, "max": 9.0, "samples": 3, "source": "INA3221 by its files"}
    tool = {"mean": 7.0, "median": 7.0, "max": 7.0, "samples": 1, "source": "tegrastats"}
    assert seen["power_w"] == {"VDD_IN": files, "VIN": tool}


def test_energy_counters_become_watts_and_a_counter_that_starts_anew_is_left_out():
    # 2 J in 1 s, 6 J in 1 s, the counter starts anew, 4 J in 2 s: 12 J in 4 s.
    points = [(1.0, 10.0), (2.0, 12.0), (3.0, 18.0), (4.0, 1.0), (6.0, 5.0)]
    samples = [{"t": when, "files": {"energy_uj": {"package-0": int(joules * 1e6)}}} for when, joules in points]
    seen = windows.describe(window(), samples)["power_w"]["package-0"]
    assert (seen["mean"], seen["median"], seen["max"], seen["samples"]) == (3.0, 2.0, 6.0, 3)


# Energy of an inference, worked by hand.


def rails(**watts):
    return {
        name: {"mean": mean, "median": mean, "max": mean, "samples": 50, "source": "INA3221 by its files"}
        for name, mean in watts.items()
    }


def summary_of(load, idle=None, missing=()):
    told = [{"name": "idle", "power_w": idle}] if idle is not None else []
    return {"windows": told + [{"name": "load", "power_w": load}], "missing": list(missing)}


def test_energy_of_an_inference_by_hand():
    # 9 W for 10 s are 90 J; 1000 pictures: 90 mJ each. Idle would have taken 50 J of them: 40 mJ above idle.
    told = power(
        summary_of(rails(VDD_IN=9.0, VDD_SOC=1.5), rails(VDD_IN=5.0, VDD_SOC=1.0)), inferences=1000, seconds=10.0
    )
    assert told["energy_mj"] == pytest.approx(90.0)
    assert told["energy_above_idle_mj"] == pytest.approx(40.0)
    assert (told["rail"], told["idle_w"], told["load_w"], told["source"]) == (
        "VDD_IN",
        5.0,
        9.0,
        "INA3221 by its files",
    )
    assert "without the carrier board" in told["note"]


def test_rails_of_a_board_without_one_for_all_are_added():
    load = rails(VDD_GPU_SOC=10.0, VDD_CPU_CV=4.0, VIN_SYS_5V0=6.0, VDDQ_VDD2_1V8AO=3.0)
    told = power(summary_of(load, rails(VDD_GPU_SOC=2.0, VDD_CPU_CV=1.0, VIN_SYS_5V0=4.0)), inferences=100, seconds=1.0)
    assert (told["load_w"], told["idle_w"]) == (20.0, 7.0)
    assert told["energy_mj"] == pytest.approx(200.0)


def test_without_idle_nothing_is_told_above_idle():
    told = power(summary_of(rails(VDD_IN=9.0)), inferences=1000, seconds=10.0)
    assert (told["idle_w"], told["energy_above_idle_mj"]) == (None, None)
    assert told["energy_mj"] == pytest.approx(90.0)
    assert "idle power was not sampled" in told["note"]


def test_a_load_that_is_not_above_idle_says_so():
    told = power(summary_of(rails(VDD_IN=5.0), rails(VDD_IN=5.1)), inferences=10, seconds=1.0)
    assert told["energy_above_idle_mj"] < 0
    assert "not above idle" in told["note"]


def test_without_rails_there_is_a_reason_and_no_number():
    told = power(summary_of({}, {}, ["power: no INA3221", "the power mode: no nvpmodel"]), inferences=1, seconds=1.0)
    assert told == {"source": "", "note": "no energy: power: no INA3221"}
    assert power(summary_of(rails(VDD_IN=9.0)), inferences=0, seconds=1.0)["source"] == ""


# The sampler, a process.


def test_a_machine_is_watched_from_another_process(tmp_path):
    root, said = orin(tmp_path).root, []
    before = threading.active_count()
    with Watch(root, interval_s=0.005, say=said.append) as watch:
        begin = time.process_time()
        with watch.window("load"):
            time.sleep(0.5)
        used = time.process_time() - begin
        assert threading.active_count() == before  # no thread of ours: nothing takes the interpreter's lock
        assert watch._process.pid == watch._head["pid"] != os.getpid()
    seen = watch.summary()
    load = seen["windows"][0]
    assert load["samples"] > 20
    assert used < 0.02  # two readings of counters; the samples cost another process
    assert (load["gpu_mhz"], load["cpu_mhz"]["median"]) == ({"median": 1020, "min": 1020, "max": 1020}, 1510)
    assert load["power_w"]["VDD_IN"]["mean"] == 5.0
    assert load["throttle_events"] == 0
    assert watch.marks("load") == []
    assert "tegrastats: no such tool here" in seen["missing"]
    assert said[0].startswith("watching: GPU clock")
    assert not is_running(watch._process.pid)
    assert not os.path.exists(watch._folder)
    json.dumps(seen, allow_nan=False)


@pytest.mark.parametrize(
    ("disturb", "words"),
    [
        (lambda machine: machine.gpu_mhz(600), "GPU's clock fell"),
        (lambda machine: machine.over_currents(8), "oc3_event_cnt rose by 1"),
        (lambda machine: machine.mode(0), "power mode changed from 25W to 15W"),
    ],
)
def test_what_happens_in_a_window_marks_that_window_and_no_other(tmp_path, disturb, words):
    machine = orin(tmp_path)
    with Watch(machine.root, interval_s=FAST) as watch:
        watch.uses = "gpu"
        for name in ("before", "in", "after"):
            with watch.window(name):
                time.sleep(0.2)
                if name == "in":
                    disturb(machine)
                time.sleep(0.2)
        assert words in watch.marks("in")[0]  # may be asked while the watch goes on
    assert watch.marks("before") == []
    assert watch.marks("after") == []
    assert len(watch.marks("in")) == 1
    assert words in watch.marks("in")[0]
    with pytest.raises(ValueError, match="no window"):
        watch.marks("another")


def test_a_machine_that_tells_nothing_is_watched_and_says_what_was_not_seen(tmp_path):
    with Watch(tmp_path, interval_s=FAST) as watch, watch.window("load"):
        time.sleep(0.1)
    seen = watch.summary()
    load = seen["windows"][0]
    assert seen["sources"] == []
    assert (load["gpu_mhz"], load["cpu_mhz"], load["temperature_c"], load["power_w"]) == ({}, {}, {}, {})
    assert load["throttle_events"] is None
    assert len(seen["missing"]) == 7
    assert watch.marks("load") == []
    assert "neither an INA3221" in power(seen, inferences=5, seconds=0.1)["note"]


def test_lines_of_tegrastats_are_added(tmp_path):
    machine = Machine(tmp_path).tegrastats(
        "while :; do echo 'RAM 1/2MB GR3D_FREQ 50%@[918] CPU [3%@1984,off] tj@50C VDD_IN 8000mW/1mW'; sleep 0.02; done"
    )
    with Watch(commands=Commands(machine.root), interval_s=FAST) as watch:
        with watch.window("load"):
            time.sleep(0.3)
        children = Path("/proc/{0}/task/{0}/children".format(watch._process.pid))
        tool = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    load = watch.summary()["windows"][0]
    assert watch.sources() == ["tegrastats"]
    assert load["power_w"]["VDD_IN"]["mean"] == 8.0
    assert (load["gpu_mhz"]["median"], load["cpu_mhz"]["median"]) == (918, 1984)
    assert load["temperature_c"] == {"tj": {"first": 50.0, "last": 50.0, "max": 50.0}}
    assert not any(is_running(pid) for pid in tool)


def test_a_board_that_is_played_back_has_both_sources(tmp_path):
    with Watch(fake_board(tmp_path / "board"), interval_s=0.05) as watch:
        for name in ("idle", "load"):
            with watch.window(name):
                time.sleep(0.4)
    seen = watch.summary()
    assert {"GPU clock (devfreq)", "power (INA3221)", "power mode", "tegrastats"} <= set(seen["sources"])
    told = power(seen, inferences=10, seconds=0.4)
    assert told["rail"] == "VDD_IN"
    assert told["energy_mj"] == pytest.approx(told["load_w"] * 40)
    assert watch.marks("load") == []


@pytest.mark.parametrize("script", ["head -c 300000 /dev/zero | tr '\\0' x; sleep 9", "exit 3", "echo '\\0\\377 junk'"])
def test_a_tool_that_says_nonsense_does_not_stop_the_files(tmp_path, script):
    machine = orin(tmp_path).tegrastats(script)
    with Watch(machine.root, interval_s=FAST) as watch, watch.window("load"):
        time.sleep(0.3)
    load = watch.summary()["windows"][0]
    assert load["samples"] > 5
    assert load["power_w"]["VDD_IN"]["source"] == "INA3221 by its files"


def test_lines_of_a_pipe_are_put_together():
    read, write = os.pipe()
    lines = sampler.Lines(read)
    os.write(write, b"one\n\ntw")
    assert lines.read() == ["one"]
    os.write(write, b"o\nthree")
    assert lines.read() == ["two"]
    os.close(write)
    assert lines.read() == []
    assert not lines.open
    os.close(read)


def test_a_sampler_that_ends_early_is_told(tmp_path):
    with Watch(orin(tmp_path).root, interval_s=FAST) as watch, watch.window("load"):
        time.sleep(0.1)
        os.kill(watch._process.pid, signal.SIGKILL)
        watch._process.wait()
    assert watch.summary()["missing"][-1] == "samples: the sampler ended early (exit code -9)"
    assert watch.summary()["windows"][0]["samples"] > 0  # what it wrote counts


def start_sampler(root, out, *more, stdin=subprocess.PIPE):
    command = [
        sys.executable,
        "-m",
        "tinkit.device.sampler",
        "--root",
        str(root),
        "--interval",
        "0.01",
        "--out",
        str(out),
    ]
    environment = dict(os.environ, PYTHONPATH=str(PACKAGE.parent))
    return subprocess.Popen([*command, *more], stdin=stdin, stderr=subprocess.PIPE, env=environment)


def test_the_sampler_ends_when_its_input_does(tmp_path):
    out = tmp_path / "samples"
    with start_sampler(orin(tmp_path).root, out) as process:
        assert wait_until(lambda: out.exists() and out.read_bytes().count(b"\n") > 3)
        os.kill(process.pid, signal.SIGINT)  # Ctrl-C in a terminal reaches it too; that is not its end
        time.sleep(0.1)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(5) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0]["head"]["pid"] == process.pid
    assert all(earlier["t"] <= later["t"] for earlier, later in itertools.pairwise(lines))
    assert abs(lines[-1]["t"] - time.monotonic()) < 30  # the clock of all processes


def test_the_sampler_ends_when_its_parent_is_gone_even_if_its_input_stays_open(tmp_path):
    with start_sampler(orin(tmp_path).root, tmp_path / "samples", "--parent", "1") as process:
        assert process.wait(5) == 0


def test_a_killed_watcher_leaves_no_sampler(tmp_path):
    code = (
        "import sys, time; from tinkit.device.watch import Watch\n"
        "with Watch({!r}, interval_s=0.01) as watch: print(watch._process.pid, flush=True); time.sleep(60)"
    ).format(orin(tmp_path / "board").root)
    environment = dict(os.environ, PYTHONPATH=str(PACKAGE.parent), TMPDIR=str(tmp_path))
    watcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    pid = int(watcher.stdout.readline())
    assert is_running(pid)
    watcher.kill()
    watcher.wait()
    watcher.stdout.close()
    assert wait_until(lambda: not is_running(pid))


def test_samples_that_cannot_be_written_end_the_sampler_with_a_word(tmp_path):
    with start_sampler(orin(tmp_path).root, tmp_path / "no" / "samples") as process:
        assert process.wait(5) == 1
        assert process.stderr.read().decode().startswith("the samples could not be written: No such file")


def test_it_all_works_from_a_zip_file_and_without_numpy(tmp_path):
    """As the agent carries it: one zip file, nothing installed, numpy not there."""
    archive = tmp_path / "agent.pyz"
    code = (
        "import sys, time; sys.modules['numpy'] = None\n"
        "import tinkit\nfrom tinkit.device.watch import Watch\n"
        "with Watch(sys.argv[1], interval_s=0.01) as watch:\n"
        "    with watch.window('load'): time.sleep(0.2)\n"
        "print(tinkit.__file__); print(watch.summary()['windows'][0]['samples']); print(watch._head['from'])\n"
    )
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("__main__.py", code)
        for path in [*PACKAGE.glob("*.py"), *PACKAGE.glob("device/*.py")]:
            text = path.read_text().replace('"pid": os.getpid()', '"from": [__file__, "numpy" in sys.modules]')
            packed.writestr("tinkit/" + path.relative_to(PACKAGE).as_posix(), text)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-S", str(archive), orin(tmp_path / "board").root],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.stderr == ""
    where, samples, sampled_by = done.stdout.splitlines()
    assert where == str(archive / "tinkit" / "__init__.py")
    assert int(samples) > 5
    assert sampled_by == str([str(archive / "tinkit" / "device" / "sampler.py"), False])
