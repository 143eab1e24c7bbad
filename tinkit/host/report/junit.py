"""JUnit XML, as build servers read it: a test case for every verdict. What was not judged is "skipped", with its reason."""

from xml.etree import ElementTree

from tinkit.fidelity import FAILED, NOT_JUDGED


def suite(name, entries) -> str:
    """entries: [{"rule" or "name", "verdict", "reason"}] -> XML text."""
    counts = {"tests": len(entries)}
    counts["failures"] = sum(entry["verdict"] == FAILED for entry in entries)
    counts["skipped"] = sum(entry["verdict"] == NOT_JUDGED for entry in entries)
    root = ElementTree.Element(
        "testsuite", {"name": _clean(name), **{key: str(count) for key, count in counts.items()}}
    )
    for entry in entries:
        case = ElementTree.SubElement(
            root, "testcase", {"classname": "tinkit", "name": _clean(entry.get("rule", entry["name"]))}
        )
        kind = {FAILED: "failure", NOT_JUDGED: "skipped"}.get(entry["verdict"])
        if kind:
            ElementTree.SubElement(case, kind, {"message": _clean(entry["reason"])})
        else:
            ElementTree.SubElement(case, "system-out").text = _clean(entry["reason"])
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _clean(text) -> str:
    """XML has no place for control characters."""
    return "".join(character if character.isprintable() else " " for character in str(text))
