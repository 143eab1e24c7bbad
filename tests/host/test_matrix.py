"""`tinkit matrix`: what is skipped is told, the worst cell decides, a board is left as it was, and the page is there."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from board_parts import ask_for_reboot, fake_board, ran_as_root
from product_parts import finished_run, quick_profile
from report_parts import small_bundle, small_report

import tinkit
from tinkit.device.commands import Commands
from tinkit.device.jetson import board_facts
from tinkit.errors import (
    EXIT_GATE,
    EXIT_NO_VERDICT,
    EXIT_OK,
    EXIT_USER,
    CannotJudge,
    Interrupted,
    TinkitError,
)
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED
from tinkit.host.board.matrix import matrix


@dataclass
class Exported:
    bundle: str
    verdict: str = PASSED


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("run") / "a run", photos)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """export and profile as a play: what they were asked is in `asked`; the verdict of a cell, or its error, in `ends`."""
    small_bundle_ = small_bundle(tmp_path)

    class Stage:
        asked, ends, verdicts = [], {}, {}

    def export(run, target, say):
        Stage.asked.append(("export", target.name))
        end = Stage.verdicts.get(target.name, PASSED)
        if isinstance(end, Exception):
            raise end
        return Exported("bundle-" + target.name, end)

    def profile(bundle, host, mode, out, say, **options):
        Stage.asked.append((bundle, host, mode, options))
        end = Stage.ends.get((bundle.removeprefix("bundle-"), mode), {})
        if isinstance(end, Exception):
            raise end
        Path(out).mkdir(parents=True)
        facts = small_report(Path(out), small_bundle_, board={"power_mode": mode}, **end)
        return replace(facts, path=str(Path(out) / "report/report.json"))

    monkeypatch.setattr(tinkit, "export", export, raising=False)
    monkeypatch.setattr(tinkit, "profile", profile, raising=False)
    return Stage


def play(run, tmp_path, targets=("onnx-fp32", "onnx-fp16"), modes=("15W", "25W"), **options):
    return matrix(run, targets, modes, out=tmp_path / "out", allow_state_change=True, **options)


def test_every_target_in_every_mode_exported_once(run, stage, tmp_path):
    found = play(run, tmp_path, host="me@orin", wait_s=7)
    assert [call for call in stage.asked if call[0] == "export"] == [("export", "onnx-fp32"), ("export", "onnx-fp16")]
    cells = [call for call in stage.asked if call[0] != "export"]
    assert [(bundle, host, mode) for bundle, host, mode, _ in cells] == [
        (f"bundle-{target}", "me@orin", mode) for target in ("onnx-fp32", "onnx-fp16") for mode in ("15W", "25W")
    ]
    assert [options["keep"] for *_, options in cells] == [True, True, True, False]
    assert all(options["allow_state_change"] and options["wait_s"] == 7 for *_, options in cells)
    assert (found.exit_code, len(found.reports), found.skipped) == (EXIT_OK, 4, [])
    assert Path(found.page).is_file()
    assert {path.name for path in (tmp_path / "out").glob("report-onnx*")} == {
        "report-onnx-fp32-15W", "report-onnx-fp32-25W", "report-onnx-fp16-15W", "report-onnx-fp16-25W"
    }  # fmt: skip


def test_the_same_twice_is_measured_once(run, stage, tmp_path):
    assert len(play(run, tmp_path, targets=("onnx-fp32",) * 2, modes=("15W",) * 2).reports) == 1


def test_without_modes_the_board_stays_as_it_is_and_needs_no_permission(run, stage, tmp_path):
    found = matrix(run, ("onnx-fp32",), out=tmp_path / "out")
    assert stage.asked[1][1:] == ("local", "", {"keep": False})
    assert found.exit_code == EXIT_OK


def limit(verdict):
    return {"name": "p95_ms", "limit": 1.0, "sign": "<", "measured": None, "verdict": verdict, "reason": ""}


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([{}, {}], EXIT_OK),
        ([{"verdict": NOT_JUDGED}, {}], EXIT_NO_VERDICT),
        ([{"budgets": [limit(NOT_JUDGED)]}, {}], EXIT_NO_VERDICT),
        ([{"verdict": FAILED}, {}], EXIT_GATE),
        ([{"verdict": FAILED}, {"verdict": NOT_JUDGED}], EXIT_GATE),
        ([{}, TinkitError("it needs a reboot")], EXIT_NO_VERDICT),
        ([TinkitError("it needs a reboot"), {"verdict": FAILED}], EXIT_GATE),
    ],
)
def test_the_worst_cell_decides(run, stage, tmp_path, ends, code):
    stage.ends = {("onnx-fp32", mode): end for mode, end in zip(("15W", "25W"), ends, strict=True)}
    found = play(run, tmp_path, targets=("onnx-fp32",))
    assert found.exit_code == code
    assert len(found.reports) + len(found.skipped) == len(found.rows()) == 2


def test_a_target_whose_gate_fails_is_skipped_in_all_its_modes_and_the_others_go_on(run, stage, tmp_path):
    stage.verdicts = {"onnx-fp32": FAILED}
    lines = []
    found = play(run, tmp_path, say=lines.append)
    assert [(target, mode) for target, mode, _ in found.skipped] == [("onnx-fp32", "15W"), ("onnx-fp32", "25W")]
    assert "gate" in found.skipped[0][2]
    assert len(found.reports) == 2
    assert found.exit_code == EXIT_GATE
    assert [line for line in lines if line.startswith("skipped  onnx-fp32, 15W: ")]


def test_a_target_that_nothing_here_can_judge_is_skipped_once(run, stage, tmp_path):
    stage.verdicts = {"onnx-fp32": CannotJudge("its runtime is missing")}
    found = play(run, tmp_path)
    assert found.exit_code == EXIT_NO_VERDICT
    assert [call for call in stage.asked if call == ("export", "onnx-fp32")] == [("export", "onnx-fp32")]


def test_nothing_measured_is_no_verdict_unless_a_gate_failed(run, stage, tmp_path):
    stage.ends = {(target, mode): TinkitError("no") for target in ("onnx-fp32", "onnx-fp16") for mode in ("15W", "25W")}
    with pytest.raises(CannotJudge, match="Nothing of the matrix"):
        play(run, tmp_path)
    stage.verdicts = {"onnx-fp32": FAILED, "onnx-fp16": FAILED}
    found = play(run, tmp_path)
    assert (found.exit_code, found.page) == (EXIT_GATE, "")


def test_ctrl_c_stops_everything(run, stage, tmp_path):
    stage.ends = {("onnx-fp32", "15W"): Interrupted("Stopped.")}
    with pytest.raises(Interrupted):
        play(run, tmp_path)
    assert len(stage.asked) == 3  # two exports and the one that was stopped


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"host": "-oProxyCommand=x"}, "no host"),
        ({"host": ""}, "no host"),
        ({"modes": ("15W",)}, "--allow-state-change"),
        ({"targets": ("onnx-fp32", "onnx-pf16")}, "onnx-fp16"),
        ({"run": "nowhere"}, "nowhere"),
    ],
)
def test_what_a_user_can_mend_is_told_before_any_work(run, stage, tmp_path, changes, said):
    with pytest.raises(TinkitError) as caught:
        matrix(**{"run": run, "targets": ("onnx-fp32",), "out": tmp_path / "out", **changes})
    assert said in str(caught.value)
    assert caught.value.exit_code == EXIT_USER
    assert stage.asked == []


@pytest.mark.slow
def test_two_modes_of_a_board_that_is_played_back_and_one_that_wants_a_reboot(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = fake_board(tmp_path / "board")
    before = board_facts(root, Commands(root))
    modes = [name for name in before["power_modes"] if name != before["power_mode"]][:2]
    ask_for_reboot(root, before["power_modes"][modes[1]])
    lines = []
    found = matrix(
        run, ("onnx-fp32",), (before["power_mode"], *modes), board_root=root, out=tmp_path / "out", allow_state_change=True,
        device=quick_profile(tmp_path / "quick.toml", arch="aarch64"), layers=False, wait_s=300, say=lines.append,
    )  # fmt: skip
    assert [report.board["power_mode"] for report in found.reports] == [before["power_mode"], modes[0]], lines
    assert [(target, mode) for target, mode, _ in found.skipped] == [("onnx-fp32", modes[1])]
    assert "reboot" in found.skipped[0][2]
    assert found.exit_code == EXIT_NO_VERDICT
    after = board_facts(root, Commands(root))
    assert after["power_mode"] == before["power_mode"]
    assert after["clocks_pinned"] == before["clocks_pinned"]
    assert not (Path(root) / "var/log/rebooted").exists()
    ids = [str(before["power_modes"][name]) for name in (modes[0], before["power_mode"], modes[1])]
    assert [line.split()[-1] for line in ran_as_root(root) if line.startswith("nvpmodel -m")] == ids
    page = Path(found.page).read_text()
    for mode in (before["power_mode"], modes[0]):
        assert mode in page
        assert (tmp_path / f"out/report-onnx-fp32-{mode}/report.html").is_file()
    assert not [path for path in (tmp_path / "cache/tinkit").rglob("*") if path.is_file()]
