"""What the settings say becomes terms, weights and options; the sum is what it says; labels weigh what the paper says."""

import pytest
import torch
from method_parts import batch, pair
from torch.nn import functional as F

from tinkit.errors import TinkitError
from tinkit.host.distill.objective import Objective, label_weight, parse_terms, trained_parts, wanted
from tinkit.host.methods import ALIASES, METHODS, method_class, options_of

WORDS = {"local", "logits", "labels", "student_taps", "teacher_taps"}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is_and_needs(name):
    method = method_class(name)
    assert {*method.needs, *method.uses} <= WORDS
    assert method.paper
    assert method.label_weight >= 0
    assert isinstance(method.reconstruction, bool)
    assert all(isinstance(default, (bool, int, float, str, tuple)) for default in options_of(method).values())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_around_it_does_not_change_a_loss(name, dtype):
    """The law of all similarity terms: under autocast they are what they are without."""
    found = []
    for autocast in (False, True):
        torch.manual_seed(0)
        objective = Objective(parse_terms(name), pair())
        one = batch(pair(), dtype=torch.float32, labels=True)
        objective.fit(lambda one=one: [one.teacher])
        with torch.autocast("cpu", dtype, enabled=autocast):
            found.append(objective(one))
    assert {key: value.item() for key, value in found[0].items()} == {k: v.item() for k, v in found[1].items()}
    assert all(value.dtype == torch.float32 for value in found[1].values())


@pytest.mark.parametrize("name", METHODS)
def test_features_in_half_precision_are_computed_on_in_float32(name):
    torch.manual_seed(0)
    objective = Objective(parse_terms(name), pair())
    one = batch(pair(), dtype=torch.bfloat16, labels=True)
    objective.fit(lambda: [one.teacher.to(torch.float32)])
    parts = objective(one)
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in parts.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_network_under_autocast_may_mix_half_and_full_precision(name):
    """A ViT's norm gives a float32 embedding, its head bfloat16 logits."""
    found = []
    for mixed in (False, True):
        torch.manual_seed(0)
        objective = Objective(parse_terms(name), pair())
        one = batch(pair(), dtype=torch.float32, labels=True)
        for features in (one.student, one.teacher):
            features.logits_BC = features.logits_BC.detach().bfloat16()
            features.taps = {key: tap.detach().bfloat16() for key, tap in features.taps.items()}
            if not mixed:
                features.logits_BC = features.logits_BC.float()
                features.taps = {key: tap.float() for key, tap in features.taps.items()}
        objective.fit(lambda one=one: [one.teacher])
        found.append({key: value.item() for key, value in objective(one).items()})
    assert found[0] == found[1]


@pytest.mark.parametrize(("name", "reached"), [("at", {"taps"}), ("kd", {"logits"}), ("tintem", {"global", "local"})])
def test_what_a_method_trains_of_the_student(name, reached):
    objective = Objective(parse_terms(name), pair())
    objective.fit(lambda: [batch(pair(), dtype=torch.float32).teacher])
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    assert trained_parts(objective, pair()) == reached
    assert all(torch.equal(before[key], value) for key, value in objective.state_dict().items())


def test_several_methods_add_up_with_their_weights_and_named_parts():
    one = batch(pair(), dtype=torch.float32)
    terms = parse_terms("cosine+dist:0.5", ["dist.tau=4"])
    torch.manual_seed(0)
    objective = Objective(terms, pair())
    parts = objective(one)
    alone = {name: term(one)["loss"].item() for name, term in objective.terms.items()}
    assert parts["loss"].item() == pytest.approx(alone["cosine"] + 0.5 * alone["dist"])
    assert {"dist.inter", "dist.intra"} < set(parts)
    assert objective.terms["dist"].tau == 4
    assert [term["weight"] for term in objective.describe()] == [1, 0.5]


def test_settings_reach_the_methods_that_have_such_an_option_and_no_other():
    terms = parse_terms("cospress+kd", ["tintem.form=half"], {"mapping": "learned", "center": False})
    assert [term.name for term in terms] == ["tintem", "kd"]
    assert terms[0].options == {"mapping": "learned", "center": False, "form": "half"}
    assert terms[1].options == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [("temperatures=0.1,1", (0.1, 1.0)), ("center=no", False), ("token_weight=2", 2.0), ("form=half", "half")],
)
def test_an_option_is_read_as_the_type_of_its_default(text, value):
    (term,) = parse_terms("tintem", [text])
    assert list(term.options.values()) == [value]


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("tintm", [], "no such method.*tintem"),
        ("tintem+cospress", [], "named twice"),
        ("tintem+dist:0", [], "above 0"),
        ("tintem+dist:lots", [], "above 0"),
        ("tintem+dist", ["tau=4"], "METHOD.name=value"),
        ("tintem", ["form"], "name=value"),
        ("tintem", ["kd.tau=4"], "name=value"),
        ("tintem", ["frm=half"], "no such option.*form"),
        ("tintem", ["center=maybe"], "wrong type"),
        ("tintem+", [], "missing beside a plus"),
        ("kd", ["tau=nan"], "wrong type"),
        ("tintem", ["token_weight=heavy"], "wrong type.*float"),
    ],
)
def test_what_cannot_be_meant_is_refused(method, options, words):
    with pytest.raises(TinkitError, match=f"(?s){words}"):
        parse_terms(method, options)


def test_an_option_that_the_method_itself_refuses_is_a_user_s_mistake():
    with pytest.raises(TinkitError, match=r"(?s)form.*third.*options of tintem"):
        Objective(parse_terms("tintem", ["form=third"]), pair())


def test_what_a_method_lacks_comes_with_the_option_that_gives_it():
    with pytest.raises(TinkitError, match="--labels folders"):
        wanted(parse_terms("tcs"), local=True, logits=False, labels=False)
    with pytest.raises(TinkitError, match="--no-local"):
        wanted(parse_terms("proteus"), local=False, logits=False, labels=False)
    assert wanted(parse_terms("tintem"), True, False, False) == {"local"}
    assert wanted(parse_terms("tintem"), False, False, False) == set()
    assert wanted(parse_terms("vkd"), True, True, False) >= {"logits"}
    assert "logits" not in wanted(parse_terms("vkd"), True, False, False)


def test_labels_weigh_what_the_paper_says_unless_asked_otherwise():
    assert label_weight(parse_terms("tintem"), None) == 0
    assert label_weight(parse_terms("tintem+kd:2"), None) == pytest.approx(0.2)
    assert label_weight(parse_terms("tintem"), 0.7) == 0.7


def test_cross_entropy_is_over_the_labelled_pictures_alone():
    one = batch(pair(), dtype=torch.float32, labels=True)
    one.labels_B[2:] = -1
    parts = Objective(parse_terms("cosine"), pair(), label_weight=0.3)(one)
    assert parts["label"].item() == pytest.approx(
        F.cross_entropy(one.student.logits_BC[:2], one.labels_B[:2]).item(), rel=1e-6
    )
    one.labels_B[:] = -1
    assert Objective(parse_terms("cosine"), pair(), label_weight=0.3)(one)["label"].item() == 0


def test_an_alias_is_its_method():
    for alias, name in ALIASES.items():
        assert method_class(alias) is method_class(name)
