"""The section on precision: what was asked for, found, calibrated and healed; nothing is rounded up, nothing invented."""

import re
import shutil

from report_parts import TARGET, Page, small_bundle, small_report, written

from tinkit.fidelity import FAILED, PASSED
from tinkit.host.report.precision import percent

GRAPH = {
    "subject": "graph", "precision": "fp16", "layers": {"fp16": 0.61, "fp32": 0.39}, "macs": {"fp16": 0.912345, "fp32": 0.087655},
    "floor": 0.9, "verdict": PASSED, "reason": "the graph's own reason", "notes": ["a note on the graph"],
    "weights": {"fp16": 0.75, "fp32": 0.25}, "computed": "",
}  # fmt: skip
ENGINE = {**GRAPH, "subject": "engine", "macs": {"fp32": 0.999999, "fp16": 0.000001}, "layers": {}, "verdict": FAILED,
          "reason": "the engine's own reason", "notes": [], "weights": {}, "computed": "bf16"}  # fmt: skip
SUSPECT = {"node": "blocks.3/<Conv>", "op_type": "Conv", "added": "inf"}
HEALED = {
    "healed": True, "reason": "2 nodes went back", "macs": 0.03, "trials": 17, "before": -1.0, "after": 0.99987,
    "ranking": [SUSPECT],
    "kept": [
        {"node": "stem.0/Conv", "op_type": "Conv", "macs": 0.0254, "added": 0.321, "gain": 1.99871},
        {"node": "stem.1/Add", "op_type": "Add", "macs": 0.0, "added": 0.0512, "gain": None},
    ],
}  # fmt: skip
UNHEALED = {**HEALED, "healed": False, "reason": "not healed with little", "kept": [], "after": 0.41}
CALIBRATED = {
    "chosen": "entropy",
    "worst_cosine": {"minmax": 0.811119, "percentile": 0.822229, "entropy": 0.833339},
    "pictures": 123,
}


def precision_section(folder, report_changes=None, **manifest):
    """The text of the section "Precision" and of the whole page."""
    small_report(folder, small_bundle(folder, **manifest), **(report_changes or {}))
    text = Page(written(folder)).text
    return re.search(r"Precision Asked for (.*?) Training ", text).group(1), text


def test_precision_asked_for_and_found_in_graph_and_engine(tmp_path):
    target = {**TARGET.to_json(), "rest": "fp16", "weakly_typed": True, "heal": 0.0, "unproven": "no such board here"}
    changes = {"truth": ENGINE, "verdict": FAILED}
    section, text = precision_section(tmp_path, changes, target=target, precision=GRAPH, node_macs={"secret/node": 5})
    expected = (
        "precision fp16", "what is not int8 fp16", "weakly typed (TensorRT 8 is asked by flags, and decides itself) yes",
        "in this precision 90.00 %", "healing may return 0.00 %", "unproven no such board here",
        "the graph fp16 91.23 %, fp32 8.76 % fp16 61.00 %, fp32 39.00 % fp16 75.00 %, fp32 25.00 % passed the graph's own reason",
        "a note on the graph",
        "this device fp32 99.99 %, fp16 less than 0.01 % none counted none counted failed the engine's own reason",
        "arithmetic asked of the runtime: bf16",
    )  # fmt: skip
    assert [words for words in expected if words not in section] == []
    assert "precision in this device: the engine's own reason" in text  # among what was missed
    assert text.count("the graph's own reason") == 1  # not again among the conditions
    assert "secret/node" not in text
    assert "weakly typed" not in precision_section(other(tmp_path))[0]


def other(folder):
    (folder / "other").mkdir()
    return folder / "other"


def test_a_device_that_does_not_tell_is_said_with_the_reason(tmp_path):
    macs = {"node_macs": {"a": 1}, "precision": GRAPH}
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    assert "onnxruntime does not tell in which precision" in precision_section(folders[0], **macs)[0]
    assert (
        "a rehearsal: the target's own runtime" in precision_section(folders[1], {"rehearsal": "elsewhere"}, **macs)[0]
    )
    assert "does not tell the MACs of its nodes" in precision_section(folders[2], precision=GRAPH)[0]


def test_calibration_shows_every_way_and_the_one_chosen(tmp_path):
    section = precision_section(tmp_path, calibration=CALIBRATED)[0]
    assert "Ranges from 123 pictures" in section
    assert "minmax 0.81111 percentile 0.82222 entropy 0.83333 chosen" in section
    assert section.count("0.8") == 3
    assert "Calibration" not in precision_section(other(tmp_path), calibration={})[0]


def test_healed_nodes_are_listed_with_share_and_gain(tmp_path):
    section, text = precision_section(tmp_path, healing={"fp16": HEALED}, precision=GRAPH)
    assert "fp16 , healed : 2 nodes went back" in section
    assert "Worst cosine -1.00000 before, 0.99987 after; 17 graphs judged" in section
    assert "stem.0/Conv Conv 2.54 % 0.321 +1.998710" in section
    assert "stem.1/Add Add 0.00 % 0.0512 not judged" in section
    assert "blocks.3" not in section  # the ranking is for what could not be healed
    assert text.count("stem.0/Conv") == 1


def test_what_was_not_healed_shows_its_ranking_as_text(tmp_path):
    section = precision_section(tmp_path, healing={"int8": UNHEALED})[0]
    assert "int8 , not healed : not healed with little" in section
    assert "0.41000 at best" in section
    assert "blocks.3/<Conv> Conv overflows" in section
    assert "Gain" not in section


def test_nodes_that_tensorrt_8_keeps_in_fp32(tmp_path):
    section = precision_section(tmp_path, fp32_nodes=[f"node/{index}" for index in range(30)])[0]
    assert "node/23 and 6 more" in section
    assert "node/24" not in section
    assert "TensorRT 8" not in precision_section(other(tmp_path), fp32_nodes=[])[0]


def test_nothing_healed_is_not_the_same_as_not_recorded(tmp_path):
    assert "No node was sent back" in precision_section(tmp_path, healing={})[0]
    section = precision_section(other(tmp_path))[0]
    assert "No node was sent back" not in section
    assert "Healing not recorded" in section


def test_an_older_bundle_keeps_what_it_recorded(tmp_path):
    section = precision_section(tmp_path, precision={"fp16": 0.75, "fp32": 0.25})[0]
    assert "recorded without a verdict" in section
    assert "fp16 0.75 fp32 0.25" in section
    shutil.rmtree(tmp_path / "bundle-small")
    assert "the graph none counted none counted none counted none not recorded" in Page(written(tmp_path)).text


def test_a_share_never_looks_larger_than_it_was():
    assert percent(0.99999) == "99.99 %"
    assert percent(1.0) == "100.00 %"
    assert percent(0.07) == "7.00 %"  # 0.07 * 100 is 7.000000000000001, and 0.29 * 100 is less than 29
    assert percent(0.29) == "29.00 %"
    assert percent(1e-6) == "less than 0.01 %"
    assert percent(0.0) == "0.00 %"
    assert percent(None) == "not recorded"
