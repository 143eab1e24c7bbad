"""Healing as a search: a pretended judge knows which nodes matter, and counts how often it is asked."""

import math

import pytest

from tinkit.host.export.heal import Suspect, Trial, heal

NODES = [f"node{i}" for i in range(200)]


class Judge:
    """Passes when all `needed` nodes are kept; each missing one costs 0.1 of the worst cosine."""

    def __init__(self, needed):
        self.needed, self.asked = set(needed), []

    def __call__(self, kept):
        self.asked.append(kept)
        missing = len(self.needed - kept)
        return Trial(not missing, 1.0 - 0.1 * missing)


def ranked(*nodes, rest=NODES):
    """A ranking that begins with `nodes`."""
    order = [*nodes, *(node for node in rest if node not in nodes)]
    return lambda kept: [Suspect(node, "Conv", 1.0 / (place + 1)) for place, node in enumerate(order)]


def test_a_passing_graph_is_left_alone():
    judge = Judge([])
    found = heal(judge, ranked(), {}, 0.15)
    assert not found.healed
    assert found.kept == ()
    assert len(judge.asked) == 1


@pytest.mark.parametrize("needed", [["node7"], ["node3", "node150"], ["node1", "node2", "node3", "node90"]])
def test_the_needed_nodes_are_found_wherever_they_are_ranked(needed):
    judge = Judge(needed)
    found = heal(judge, ranked(), {}, 0.15)
    assert found.healed
    assert sorted(found.nodes) == sorted(needed)
    assert found.before == pytest.approx(1 - 0.1 * len(needed))
    assert found.after == 1.0
    assert all(entry.gain == pytest.approx(0.1) for entry in found.kept)


def test_a_good_ranking_needs_few_trials_and_never_one_a_node():
    judge = Judge(["node120", "node121"])
    heal(judge, ranked("node120", "node121"), {}, 0.15)
    assert len(judge.asked) <= 7
    judge = Judge(["node199"])
    heal(judge, ranked(), {}, 0.15)
    assert len(judge.asked) < 40


def test_the_cost_is_a_limit_and_not_a_wish():
    judge = Judge(["node5"])
    found = heal(judge, ranked("node5"), {"node5": 0.2}, 0.15)
    assert not found.healed
    assert found.kept == ()
    assert not any("node5" in kept for kept in judge.asked)
    assert "15%" in found.reason
    assert found.ranking[0].node == "node5"
    exactly = heal(Judge(["node5"]), ranked("node5"), {"node5": 0.15}, 0.15)
    assert exactly.healed
    assert exactly.macs == 0.15


def test_what_one_overflow_hides_is_seen_in_the_next_round():
    judge, asked = Judge(["node10", "node20"]), []

    def suspects(kept):
        asked.append(kept)
        shown = "node20" if "node10" in kept else "node10"
        return [Suspect(shown, "MatMul", math.inf)]

    found = heal(judge, suspects, {}, 0.15)
    assert sorted(found.nodes) == ["node10", "node20"]
    assert asked == [frozenset(), frozenset({"node10"})]


def test_trials_have_an_end():
    judge = Judge(["not offered"])
    found = heal(judge, ranked(), {}, 0.15, trials=5)
    assert not found.healed
    assert len(judge.asked) == 5
    assert "5 graphs" in found.reason


def test_the_evidence_is_plain_data():
    found = heal(Judge(["node1"]), ranked(), {"node1": 0.01}, 0.15)
    told = found.to_json()
    assert told["kept"][0]["node"] == "node1"
    assert told["kept"][0]["op_type"] == "Conv"
    assert len(told["ranking"]) == 10


def test_overflows_come_first_and_alone():
    """Behind an overflow every node looks guilty or innocent by chance: a round offers those that overflow, all of them."""
    judge = Judge(["loud1", "loud2", "quiet"])

    def suspects(kept):
        loud = [Suspect(name, "MatMul", math.inf) for name in ("loud1", "loud2") if name not in kept]
        noise = [Suspect(node, "Conv", 0.0) for node in NODES]
        return [*loud, *noise] if loud else [Suspect("quiet", "Conv", 0.3), *noise]

    found = heal(judge, suspects, {}, 0.15)
    assert sorted(found.nodes) == ["loud1", "loud2", "quiet"]
    before_quiet = [kept for kept in judge.asked if "quiet" not in kept and len(kept) > 2]
    assert before_quiet == []


def test_what_still_fails_is_said_in_the_gates_words():
    found = heal(lambda kept: Trial(False, 0.99, "the largest error is too large"), ranked("a"), {}, 0.15, trials=3)
    assert found.reason.endswith("still failing: the largest error is too large")
