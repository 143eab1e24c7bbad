"""Errors inside a reduced graph: measured by hand, put down to the node that adds them, summed picture by picture."""

import numpy as np
import pytest
from graph_parts import make_model, overflowing, quantised, run

from tinkit.errors import TinkitError
from tinkit.host.export import activations as module
from tinkit.host.export.activations import activation_names, activations, compare_activations
from tinkit.host.export.half import to_half
from tinkit.host.export.rehearsal import rehearsal_graph


def chain(scale=1.0, length=6):
    """image * 1 + 1 ... : `length` additions; the third adds 1 * scale."""
    nodes = [("Add", ["image", "c0"], "t0")] + [("Add", [f"t{i - 1}", f"c{i}"], f"t{i}") for i in range(1, length)]
    nodes[-1] = (*nodes[-1][:2], "embedding")
    constants = {f"c{i}": [scale if i == 2 else 1.0] * 3 for i in range(length)}
    return make_model(nodes, constants, 3)


def feeds(count=3, width=3):
    rng = np.random.default_rng(5)
    return [{"image": rng.normal(size=(2, width)).astype(np.float32)} for _ in range(count)]


def test_activations_give_every_tensor_of_every_feed():
    seen = list(activations(chain(), feeds()))
    assert [list(one) for one in seen] == [["t0", "t1", "t2", "t3", "t4", "embedding"]] * 3
    for feed, one in zip(feeds(), seen):
        assert np.allclose(one["t3"], feed["image"] + 4)
    assert [list(one) for one in activations(chain(), feeds(1), ["t3"])] == [["t3"]]


def test_activations_are_a_stream():
    """Not the second feed before the first is answered, so memory does not grow with the pictures."""
    asked = []

    def asking():
        for number, feed in enumerate(feeds()):
            asked.append(number)
            yield feed

    stream = activations(chain(), asking())
    next(stream)
    assert asked == [0]
    next(stream)
    assert asked == [0, 1]


def test_names_that_are_not_there_and_feeds_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="'nothing'"):
        next(activations(chain(), feeds(), ["nothing"]))
    with pytest.raises(TinkitError, match="does not run"):
        next(activations(chain(), feeds(width=4)))


def test_constants_and_integers_are_no_activations():
    names = activation_names(quantised())
    assert names == ["image/dq", "conv", "relu", "pool", "mean", "mean/dq", "product", "embedding"]


def test_errors_are_relative_over_all_pictures_and_put_down_to_the_node_that_adds_them():
    found = compare_activations(chain(), chain(1.5), feeds())
    by_tensor = {entry.tensor: entry for entry in found}
    images = np.concatenate([feed["image"] for feed in feeds()]).astype(np.float64)
    expected = np.sqrt(images.size * 0.25) / np.linalg.norm(images + 3)
    assert found[0].node == "Add2"
    assert found[0].op_type == "Add"
    assert found[0].added == pytest.approx(expected, rel=1e-5)
    assert by_tensor["t1"].error == by_tensor["t0"].added == 0
    assert by_tensor["t3"].error == pytest.approx(np.sqrt(images.size * 0.25) / np.linalg.norm(images + 4), rel=1e-5)
    assert by_tensor["t3"].added == 0  # it only carries on what t2 has
    assert [entry.added for entry in found] == sorted((entry.added for entry in found), reverse=True)


def test_groups_change_nothing(monkeypatch):
    whole = compare_activations(chain(), chain(1.5), feeds())
    monkeypatch.setattr(module, "GROUP", 2)
    assert compare_activations(chain(), chain(1.5), feeds()) == whole


def test_the_node_that_overflows_is_first_and_those_behind_it_add_nothing():
    image = [{"image": np.full((1, 8, 1, 1), value, np.float32)} for value in (1.0, 250.0)]
    rehearsal = rehearsal_graph(to_half(overflowing(), "fp16")[0])
    found = compare_activations(overflowing(), rehearsal, image)
    assert [(entry.node, entry.error, entry.added) for entry in found] == [
        ("Conv0", np.inf, np.inf),
        ("Conv1", np.inf, 0.0),
    ]
    assert compare_activations(overflowing(), rehearsal, image[:1])[0].added < 1e-3


def test_where_the_kept_node_is_large_the_reader_is_to_blame():
    image = [{"image": np.full((1, 8, 1, 1), 250, np.float32)}]
    found = compare_activations(
        overflowing(), rehearsal_graph(to_half(overflowing(), "fp16", keep=["Conv0"])[0]), image
    )
    assert [(entry.node, entry.added) for entry in found] == [("Conv1", np.inf), ("Conv0", 0.0)]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_keeping_the_worst_node_takes_its_error_away(precision):
    model = quantised(22)
    image = [{"image": np.random.default_rng(2).normal(size=(3, 4, 6, 6)).astype(np.float32)}]
    before = compare_activations(model, rehearsal_graph(to_half(model, precision)[0]), image)
    assert before[0].added > 0
    everything = [node.name for node in model.graph.node]
    after = compare_activations(model, rehearsal_graph(to_half(model, precision, keep=everything)[0]), image)
    assert all(entry.error == 0 for entry in after)
    assert {entry.tensor for entry in after} == {entry.tensor for entry in before} == set(activation_names(model))


def test_a_mask_of_minus_infinity_is_no_error_where_it_is_the_same():
    nodes = [("Add", ["image", "mask"], "masked"), ("Softmax", ["masked"], "embedding")]
    model = make_model(nodes, {"mask": [0, 0, -np.inf]}, 3)
    rehearsal = rehearsal_graph(to_half(model, "fp16")[0])
    assert np.isfinite(run(rehearsal, feeds()[0]["image"])).all()
    assert max(entry.error for entry in compare_activations(model, rehearsal, feeds())) < 1e-2
    other = make_model(nodes, {"mask": [0, 0, 0.0]}, 3)
    worst = compare_activations(model, other, feeds())[0]
    assert (worst.node, worst.error) == ("Add0", np.inf)


def test_zeros_that_come_out_otherwise_have_the_error_1():
    nodes = [("Mul", ["image", "c"], "zero"), ("Add", ["zero", "image"], "embedding")]
    errors = compare_activations(make_model(nodes, {"c": [0.0]}, 3), make_model(nodes, {"c": [1e-3]}, 3), feeds())
    assert errors[0].tensor == "zero"
    assert errors[0].error == 1
    same = compare_activations(make_model(nodes, {"c": [0.0]}, 3), make_model(nodes, {"c": [0.0]}, 3), feeds())
    assert {entry.error for entry in same} == {0}


def test_a_tensor_of_another_shape_is_said():
    models = [
        make_model([(op, ["image"], "middle"), ("Add", ["image", "middle"], "embedding")], {}, 3)
        for op in ("Identity", "ReduceMax")
    ]
    with pytest.raises(TinkitError, match="another shape"):
        compare_activations(*models, feeds())
