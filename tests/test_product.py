"""The example product of docs/product: its settings are valid, its builds call what there is, and a regression fails them."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from export_parts import ROOT
from product_parts import finished_run, make, quick_profile, tinkit_command

from tinkit.budget import check_budget
from tinkit.device.scenarios import parse_scenario
from tinkit.host.report.compare import parse_rules
from tinkit.settings_file import PROFILE, SETTINGS_FILE, read_section

PRODUCT = Path(ROOT) / "docs/product"
GITHUB, GITLAB = ".github/workflows/edge.yml", ".gitlab-ci.yml"


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    return tinkit_command(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def product(tmp_path):
    shutil.copytree(PRODUCT, tmp_path / "a product")
    return tmp_path / "a product"


def script_lines(name):
    """The lines of shell in one of the two builds."""
    text = yaml.safe_load((PRODUCT / name).read_text())
    if name == GITHUB:
        commands = [step["run"] for job in text["jobs"].values() for step in job["steps"] if "run" in step]
    else:
        commands = [line for part in ("before_script", "script", "after_script") for line in text["edge"][part]]
    return [line for command in commands for line in command.splitlines()]


def make_calls(name):
    return [line.split("make ", 1)[1] for line in script_lines(name) if line.startswith("make ")]


@pytest.mark.parametrize("name", [GITHUB, GITLAB])
def test_a_build_calls_only_what_there_is(name, product, command):
    calls = make_calls(name)
    assert [call.split()[0] for call in calls] == ["jetson-doctor", "regress"]
    for call in calls:
        target, *values = shlex.split(call)
        assert {value.split("=")[0] for value in values} == {"SSH_CONFIG"}
        done = make("-n", target, *values, cwd=product, path=command)
        assert done.returncode == 0, done.stdout
        assert '--ssh-config="$SSH_CONFIG"' in done.stdout


@pytest.mark.parametrize("name", [GITHUB, GITLAB])
def test_a_build_is_valid_shell_and_keeps_what_it_measured(name, product):
    done = subprocess.run(["bash", "-n"], input="\n".join(script_lines(name)), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    text = (PRODUCT / name).read_text()
    for kept in ("runs/current/report-board", "regress.xml", "regress.json"):
        assert kept in text
    assert "RUN := runs/current\n" in (product / "Makefile").read_text()
    assert "REPORT := $(RUN)/report-board\n" in (product / "Makefile").read_text()


def test_its_settings_are_valid(product, monkeypatch):
    monkeypatch.chdir(product)
    settings = read_section("profile", PROFILE)
    check_budget(settings["budget"], SETTINGS_FILE)
    assert {"p95_ms", "p99_ms", "server.p99_ms"} <= set(settings["budget"])
    played = [parse_scenario(scenario).name for scenario in settings["scenarios"]]
    budgeted = {name.rpartition(".")[0] for name in settings["budget"] if "." in name and not name.startswith("p")}
    assert budgeted <= set(played)


def test_its_rules_are_rules(product):
    (rules,) = re.findall("^RULES := (.*)$", (product / "Makefile").read_text(), re.M)
    assert len(parse_rules(rules)) == 5


def test_the_makefile_and_the_settings_mean_the_same_board(product, monkeypatch):
    monkeypatch.chdir(product)
    (host,) = re.findall("^HOST := (.*)$", (product / "Makefile").read_text(), re.M)
    assert read_section("profile", PROFILE)["host"] == host
    for name in (GITHUB, GITLAB):
        assert f"Host {host}" in (product / name).read_text()


def test_the_readme_names_every_file_that_is_there(product):
    readme = (product / "README.md").read_text()
    for path in (path for path in product.rglob("*") if path.is_file() and path.name != "README.md"):
        assert str(path.relative_to(product)) in readme


def loosened(product):
    """Budgets and scenarios that a busy machine keeps in seconds, and a device profile that is quick."""
    path = product / SETTINGS_FILE
    text = path.read_text()
    text = text.replace(
        'host = "orin-lab"', f'host = "local"\nwait-s = 300\ndevice = "{quick_profile(product / "quick.toml")}"'
    )
    text = text.replace("duration=10", "duration=0.2,samples=20").replace("duration=20", "duration=0.5,samples=100")
    text = re.sub(r'("?[\w.]+_ms"?) = [\d.]+', r"\1 = 60000.0", text).replace("peak_mb = 1500", "peak_mb = 60000")
    path.write_text(text)


def edited(path, change):
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))


def ten_times_faster(report):
    for run in report["latency"]:
        for name in ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "p999_ms"):
            run[name] /= 10
        run["intervals"] = {name: [low / 10, high / 10] for name, (low, high) in run["intervals"].items()}


def less_faithful(report):
    for hop in report["chain"]:
        if hop["output"] == "embedding":
            hop["cosine_min"] -= 0.01


def another_device(report):
    report["machine"]["cpu"] = "another processor"
    report["board"]["model"] = "another board"


@pytest.mark.slow
def test_a_build_passes_and_fails_when_it_should(product, command, photos):
    finished_run(product / "runs/current", photos)
    loosened(product)
    here, loose = ("HOST=local", "TARGET=onnx-fp32"), "RULES=p95_ms>+9999%,embedding.cosine_min<-0.001,file_mb>+2%"
    report, baseline = product / "runs/current/report-board/report.json", product / "baseline/report.json"

    def build(*arguments):
        done = make(*arguments, *here, cwd=product, path=command)
        return done.returncode, done.stdout

    code, said = build("baseline")
    assert code == 0, said
    assert json.loads(report.read_text()) == json.loads(baseline.read_text())
    assert [limit["verdict"] for limit in json.loads(report.read_text())["budgets"]] == ["passed"] * 4
    assert (report.parent / "report.html").is_file()

    code, said = build("regress", loose)
    assert code == 0, said
    assert json.loads(report.read_text())["created"] != json.loads(baseline.read_text())["created"]
    assert json.loads((product / "regress.json").read_text())["verdict"] == "passed"
    assert (product / "regress.xml").read_text().count("<testcase") == 3

    good = baseline.read_text()
    judge = ("-o", "edge", "regress")  # of what was measured above
    edited(baseline, ten_times_faster)
    code, said = build(*judge)
    assert (code, "Error 3" in said) == (2, True), said
    failed = [
        rule["name"]
        for rule in json.loads((product / "regress.json").read_text())["rules"]
        if rule["verdict"] == "failed"
    ]
    assert {"p95_ms", "p99_ms"} & set(failed)

    baseline.write_text(good)
    edited(report, less_faithful)
    code, said = build(*judge, loose)
    assert (code, "Error 3" in said) == (2, True), said
    assert "embedding.cosine_min" in said

    edited(baseline, another_device)
    code, said = build(*judge, loose)
    assert (code, "Error 4" in said) == (2, True), said
    assert "another processor" in said or "another board" in said


@pytest.mark.slow
def test_a_missed_budget_fails_the_build(product, command, photos):
    finished_run(product / "runs/current", photos)
    loosened(product)
    path = product / SETTINGS_FILE
    path.write_text(path.read_text().replace("p95_ms = 60000.0", "p95_ms = 0.000001"))
    done = make("edge", "HOST=local", "TARGET=onnx-fp32", cwd=product, path=command)
    assert done.returncode == 2
    assert "Error 3" in done.stdout, done.stdout
    assert re.search(r"budget .*p95_ms .*failed", done.stdout)
