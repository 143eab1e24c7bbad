"""`make jetson` and its sisters: values arrive as they were said and run nothing, and a run becomes a report on a board."""

import json
import os
import sys
from pathlib import Path

import pytest
from export_parts import ROOT
from product_parts import MAKEFILE, TINKIT, finished_run, make, quick_profile, script
from report_parts import Page
from sshd_parts import NAME, NO_SSHD, Sshd, bare_python

from tinkit.fidelity import PASSED
from tinkit.host.report.text import short

AWKWARD = """a b"c'd$(touch ran)`touch ran`;touch ran|touch ran & ${HOME} $$HOME $(shell touch ran) #*? * \\n %"""
BASH = "SHELL := /bin/bash\n.SHELLFLAGS := -euo pipefail -c\n"
WAYS = ("-f", "include", "include with bash")


@pytest.fixture
def recipes(tmp_path):
    """recipes("jetson", "HOST=board", way="-f") -> (exit code, output, [arguments of every call of tinkit])."""
    place = tmp_path / "a product's folder"
    place.mkdir()
    log = tmp_path / "asked"
    code = f"import json, sys; print(json.dumps(sys.argv[1:]), file=open({str(log)!r}, 'a'))"
    (tmp_path / "log.py").write_text(code + "\n")
    fake = script(tmp_path / "tinkit", f'exec {sys.executable} -S {tmp_path}/log.py "$@"\n')

    def run(*arguments, way="-f", text="", **environment):
        if way == "-f":
            arguments = ("-f", MAKEFILE, *arguments)
        else:
            (place / "Makefile").write_text((BASH if "bash" in way else "") + f"include {MAKEFILE}\n" + text)
        done = make(*arguments, cwd=place, TINKIT=fake, **environment)
        left = sorted(path.name for path in place.iterdir() if path.name != "Makefile")
        assert left == [], "something was run"
        asked = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        log.unlink(missing_ok=True)
        return done.returncode, done.stdout, asked

    return run


@pytest.mark.parametrize("way", WAYS)
def test_the_road_to_a_report_is_export_and_profile(recipes, way):
    code, _, asked = recipes("jetson", "HOST=me@orin", way=way)
    assert code == 0
    assert asked == [["export", "--target=trt-fp16"], ["profile", "--host=me@orin"]]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_said_to_make_arrives_as_it_is_and_runs_nothing(recipes, way):
    names = ("HOST", "RUN", "SSH_CONFIG", "BOARD_PYTHON", "BUDGET", "TARGET")
    code, said, asked = recipes("jetson", *(f"{name}={name}{AWKWARD}" for name in names), way=way)
    assert code == 0, said
    export, profile = asked
    assert export == ["export", f"--target=TARGET{AWKWARD}", "--", f"RUN{AWKWARD}"]
    assert profile == [
        "profile",
        f"--host=HOST{AWKWARD}",
        f"--ssh-config=SSH_CONFIG{AWKWARD}",
        f"--python=BOARD_PYTHON{AWKWARD}",
        f"--budget=BUDGET{AWKWARD}",
        "--",
        f"RUN{AWKWARD}/bundle-TARGET{AWKWARD}",
    ]


@pytest.mark.parametrize("way", WAYS)
def test_what_the_environment_says_arrives_too_but_for_the_host(recipes, way):
    said = {name: name + AWKWARD for name in ("RUN", "SSH_CONFIG", "TARGET")}
    code, _, asked = recipes("jetson", "HOST=board", way=way, **said)
    assert code == 0
    assert asked[0] == ["export", f"--target=TARGET{AWKWARD}", "--", f"RUN{AWKWARD}"]
    assert f"--ssh-config=SSH_CONFIG{AWKWARD}" in asked[1]


def test_a_dry_run_runs_nothing(recipes):
    code, said, asked = recipes("-n", "jetson", f"HOST={AWKWARD}", f"RUN={AWKWARD}")
    assert (code, asked) == (0, [])
    assert '--host="$HOST"' in said


@pytest.mark.parametrize("target", ["jetson", "jetson-doctor", "jetson-clocks", "jetson-matrix"])
@pytest.mark.parametrize("environment", [{}, {"HOST": "the-name-of-this-machine"}])
def test_without_a_host_it_says_what_to_do(recipes, target, environment):
    code, said, asked = recipes(target, **environment)
    assert code == 2
    assert "HOST=user@board" in said
    assert asked == []


def test_a_products_own_values_are_taken_and_the_command_line_wins(recipes):
    text = "BOARD := lab\nHOST = me@$(BOARD)\nRUN := runs/current\nTARGET := onnx-fp32\n"
    asked = recipes("jetson", way="include", text=text, HOST="the-name-of-this-machine", RUN="elsewhere")[2]
    assert asked[0] == ["export", "--target=onnx-fp32", "--", "runs/current"]
    assert asked[1] == ["profile", "--host=me@lab", "--", "runs/current/bundle-onnx-fp32"]
    asked = recipes("jetson", "HOST=other", "TARGET=own/trt.toml", way="include", text=text)[2]
    assert asked[0] == ["export", "--target=own/trt.toml", "--", "runs/current"]
    assert asked[1] == ["profile", "--host=other", "--", "runs/current/bundle-trt"]


def test_what_is_said_to_make_reaches_a_make_below_it(recipes):
    text = "all:\n\t@$(MAKE) --no-print-directory jetson-doctor\n"
    code, said, asked = recipes("all", f"HOST={AWKWARD}", f"SSH_CONFIG={AWKWARD}", way="include", text=text)
    assert code == 0, said
    assert asked == [["doctor", f"--host={AWKWARD}", f"--ssh-config={AWKWARD}"]]


def test_make_alone_stays_the_products_own_first_target(recipes):
    code, said, asked = recipes(way="include", text="own:\n\t@echo its own\n")
    assert (code, said, asked) == (0, "its own\n", [])
    assert recipes()[0] == 2  # without a product there is none


def test_doctor_only_looks(recipes):
    asked = recipes("jetson-doctor", "HOST=me@orin", "SSH_CONFIG=a file", "BOARD_PYTHON=/opt/python")[2]
    assert asked == [["doctor", "--host=me@orin", "--ssh-config=a file", "--python=/opt/python"]]


@pytest.mark.parametrize(
    ("said", "flags"), [((), []), (("RESTORE=1",), ["--restore"]), (("RESTORE=0",), []), (("RESTORE=",), [])]
)
def test_clocks_are_pinned_or_put_back(recipes, said, flags):
    asked = recipes("jetson-clocks", "HOST=me@orin", *said)[2]
    assert asked == [["clocks", "--host=me@orin", "--allow-state-change", *flags]]


@pytest.mark.parametrize("way", WAYS)
def test_a_matrix_of_targets_and_modes(recipes, way):
    said = ("HOST=me@orin", "TARGETS=trt-fp16 trt-int8", "MODES=15W 25W", "BUDGET=p95_ms<5,per_s>9", "RUN=my run")
    code, _, asked = recipes("jetson-matrix", *said, way=way)
    assert code == 0
    wanted = ["--target=trt-fp16", "--target=trt-int8", "--mode=15W", "--mode=25W", "--", "my run"]
    assert asked == [["matrix", "--host=me@orin", "--allow-state-change", "--budget=p95_ms<5,per_s>9", *wanted]]


@pytest.mark.parametrize("way", WAYS)
def test_a_matrix_without_modes_changes_nothing_and_takes_the_one_target(recipes, way):
    assert recipes("jetson-matrix", "HOST=o", "TARGET=t", way=way)[2] == [["matrix", "--host=o", "--target=t"]]


@pytest.mark.parametrize("way", WAYS)
def test_lists_are_split_at_spaces_and_nothing_else_happens_to_them(recipes, way):
    asked = recipes("jetson-matrix", "HOST=o", f"TARGETS={AWKWARD}", f"MODES={AWKWARD}", way=way)[2]
    words = AWKWARD.split()
    assert asked[0][3:] == [*(f"--target={word}" for word in words), *(f"--mode={word}" for word in words)]


def test_the_checkouts_own_makefile_has_the_recipes(tmp_path):
    """Its virtual environment is pretended: newer than pyproject.toml, with a tinkit that says what it was asked."""
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin/tinkit", 'printf "<%s>" "$@"; echo\n')
    (tmp_path / ".installed").touch()
    done = make("jetson", "HOST=a b$(touch ran)", f"VENV={tmp_path}", cwd=ROOT)
    assert done.returncode == 0
    assert "<profile><--host=a b$(touch ran)>" in done.stdout
    assert not os.path.exists(os.path.join(ROOT, "ran"))
    listed = make("help", cwd=ROOT).stdout
    assert [word for word in ("jetson ", "jetson-doctor", "jetson-clocks", "jetson-matrix") if word not in listed] == []
    assert make("-n", cwd=ROOT).stdout == make("-n", "help", cwd=ROOT).stdout


@pytest.mark.parametrize("target", ["jetson-doctor", "jetson-clocks"])
def test_a_host_that_is_an_option_of_ssh_is_refused(tmp_path, target):
    done = make("-f", MAKEFILE, target, "HOST=-oProxyCommand=touch ran", f"TINKIT={TINKIT}", cwd=tmp_path)
    assert done.returncode == 2
    assert "This is no host to connect to." in done.stdout
    assert list(tmp_path.iterdir()) == []


def assert_page_tells(page, report):
    """Device, exam, latency and its conditions."""
    single = report["latency"][0]
    words = Page(page).text
    shown = [
        "The board Memory",
        report["machine"]["cpu"],
        "student → onnxruntime, batch 1",
        "passed cosine at least 0.9999",
    ]
    shown += [
        f"p50 {short(single['p50_ms'])}",
        f"{single['samples']} samples",
        "provider CPUExecutionProvider",
        "copies included",
    ]
    assert [one for one in shown if one not in words] == []


@pytest.mark.slow
@pytest.mark.skipif(bool(NO_SSHD), reason=NO_SSHD or "there is one")
def test_a_run_becomes_a_report_from_a_board_that_has_neither_torch_nor_tinkit(photos, tmp_path):
    place, far = tmp_path / "product", tmp_path / "far"
    place.mkdir()
    run = finished_run(place / "a run", photos)
    python = bare_python(far / "python")
    assert not [path for path in Path(python).parents[1].rglob("*") if path.name in ("torch", "tinkit", "onnx")]
    with Sshd(tmp_path / "sshd", far / "cache") as sshd:
        done = make(
            *("-f", MAKEFILE, "jetson", f"HOST={NAME}", f"SSH_CONFIG={sshd.config}", "TARGET=onnx-fp32", f"RUN={run}"),
            *(f"BOARD_PYTHON={python}", f"TINKIT={TINKIT}", "BUDGET=p95_ms<10000"),
            f"JETSON_FLAGS=--device={quick_profile(tmp_path / 'quick.toml')} --wait=300",
            cwd=place,
        )
        assert done.returncode == 0, done.stdout
        assert not [path for path in sshd.cache.rglob("*") if path.is_file()]
    (folder,) = Path(run).glob("report-*")
    report = json.loads((folder / "report.json").read_text())
    assert report["verdict"] == PASSED
    assert report["budgets"][0]["verdict"] == PASSED
    assert {"connect", "copy", "exam"} <= set(report["steps"])
    page = (folder / "report.html").read_text()
    assert_page_tells(page, report)
