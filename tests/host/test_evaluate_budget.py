"""The degradation budget: a gate passes just inside of its limit and fails just outside, and says what it is about."""

import pytest

from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED
from tinkit.host.evaluate.budget import check, judge, parse, verdict_of
from tinkit.host.evaluate.measure import HIGHER, LOWER, Measure

AUROC = Measure("auroc", "ood", "AUROC", 0.84, 0.85, interval=(0.8, 0.88), change=(-0.03, 0.01))
AGREEMENT = Measure("agreement", "labels", "agreement", 0.9, interval=(0.88, 0.92))
ECE = Measure("ece", "labels", "ECE", 0.05, 0.03, LOWER)
KNOWN = {"auroc": HIGHER, "agreement": HIGHER, "ece": LOWER}


def verdicts(text):
    return [entry.verdict for entry in judge(parse(text), [AUROC, AGREEMENT, ECE])]


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ("agreement>0.9", "agreement>0.9000001"),
        ("auroc>-0.0100001", "auroc>-0.0099999"),
        ("auroc>-1.1765%", "auroc>-1.1764%"),
        ("auroc>0.84", "auroc>0.8400001"),
        ("ece<0.05", "ece<0.0499999"),
        ("ece<+0.0200001", "ece<+0.0199999"),
        ("ece<+66.667%", "ece<+66.666%"),
    ],
)
def test_just_inside_passes_and_just_outside_fails(inside, outside):
    assert verdicts(inside) == [PASSED]
    assert verdicts(outside) == [FAILED]


def test_the_example_of_the_issue():
    rules = parse("auroc>-0.01, corruption>-2%,agreement>0.9")
    assert [(rule.name, rule.limit, rule.change, rule.percent) for rule in rules] == [
        ("auroc", -0.01, True, False),
        ("corruption", -0.02, True, True),
        ("agreement", 0.9, False, False),
    ]
    judged = judge(rules, [AUROC, AGREEMENT])
    assert judged[1].verdict == NOT_JUDGED
    assert verdict_of(judged) == NOT_JUDGED


def test_a_limit_inside_of_the_interval_says_that_other_pictures_might_decide_otherwise():
    inside, beyond = judge(parse("auroc>-0.02,auroc>-0.05"), [AUROC])
    assert "might have decided otherwise" in inside.reason
    assert "might have decided otherwise" not in beyond.reason
    assert "-0.0300 to +0.0100" in inside.reason


def test_one_failure_fails_all_and_nothing_is_no_pass():
    assert verdict_of(judge(parse("agreement>0.5,agreement>0.99"), [AGREEMENT])) == FAILED
    assert verdict_of([]) == NOT_JUDGED


def test_a_change_of_what_has_no_teacher_is_not_judged():
    (found,) = judge(parse("agreement>-0.1"), [AGREEMENT])
    assert found.verdict == NOT_JUDGED
    assert "without a sign" in found.reason


def test_a_share_of_less_than_nothing_keeps_its_side():
    """A teacher that gains by corruption: a student that loses more is worse by 50 %, not better."""
    gap = Measure("corruption_gap", "corruption", "gap", -0.01, -0.02, "lower", (-0.02, 0.0), (0.0, 0.02))
    (found,) = judge(parse("corruption_gap<+10%"), [gap])
    assert found.verdict == FAILED
    assert found.seen == pytest.approx(0.5)
    assert "+0.00% to +100.00%" in found.reason


@pytest.mark.parametrize(
    "text", ["auroc", "auroc>", ">0.9", "auroc=0.9", "auroc>x", "auroc>5%", "auroc>--1", "auroc>0.9 or so"]
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(TinkitError) as error:
        parse(text)
    assert error.value.seen == text
    assert error.value.next_step


@pytest.mark.parametrize(
    ("text", "told"),
    [("aurok>0.9", "auroc"), ("auroc<0.9", "write >"), ("ece>0.1", "write <"), ("agreement>0.9", "give labels")],
)
def test_a_budget_is_refused_before_the_work(text, told):
    with pytest.raises(TinkitError) as error:
        check(parse(text), KNOWN, {"agreement": "give labels"})
    assert told in error.value.next_step


def test_a_budget_that_can_be_judged_is_taken():
    assert check(parse("auroc>-0.01,ece<0.1"), KNOWN, {"agreement": "give labels"}) is None
