"""int8 with a scale for each vector: never further off than half a step, its loss measured and told."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small_store import Arithmetic, Listing, MadeViews

from tinkit.host.store import open_or_build
from tinkit.host.store.precision import SCALE, loss_of, measured_loss, packed, unpacked, vector_axis

ALL = ("local", "logits", "taps")
VALUES = st.floats(-(2.0**100), 2.0**100, width=32)


@pytest.mark.parametrize("name", ["global", "local", "tap.a"])
@given(values=arrays.arrays(np.float32, (2, 3, 4, 5), elements=VALUES))
def test_a_value_is_at_most_half_a_step_away(name, values):
    values = torch.from_numpy(values)
    stored = packed(name, values, "int8")
    scale, axis = stored[name + SCALE], vector_axis(name)
    assert scale.shape[axis] == 1
    assert stored[name].dtype == torch.int8
    back = unpacked(stored[name], scale, torch.float32)
    assert ((values - back).double().abs() <= scale.double() * (0.5 + 1e-4)).all()
    peaks = values.abs().amax(axis)
    assert torch.equal(stored[name].abs().amax(axis) == 127, peaks >= 127 * torch.finfo(torch.float32).tiny)


def test_zeros_stay_zeros_and_what_is_not_finite_shows():
    zeros = packed("local", torch.zeros(2, 3, 4), "int8")
    assert not zeros["local"].any()
    assert torch.isfinite(zeros["local" + SCALE]).all()
    for bad in (float("nan"), float("inf")):
        values = torch.ones(2, 4)
        values[1, 2] = bad
        assert not torch.isfinite(packed("global", values, "int8")["global" + SCALE]).all()


def test_the_loss_is_what_it_says():
    values = torch.randn(50, 7, 33, generator=torch.Generator().manual_seed(0))
    values[3, 2] = 0
    stored = packed("local", values, "int8")
    back = unpacked(stored["local"], stored["local" + SCALE], None)
    loss = loss_of(measured_loss("local", values, stored))
    rest = values.norm(dim=-1) > 0
    error = (values - back).norm(dim=-1)[rest] / values.norm(dim=-1)[rest]
    cosine = torch.nn.functional.cosine_similarity(values, back, -1)[rest]
    assert loss.vectors == 350
    assert loss.error_worst == pytest.approx(float(error.max()), rel=1e-4)
    assert loss.error_mean == pytest.approx(float(error.sum()) / 350, rel=1e-4)
    assert loss.cosine_worst == pytest.approx(float(cosine.min()), abs=1e-6)
    halves = [
        loss_of(measured_loss("local", values[a:b], packed("local", values[a:b], "int8"))) for a, b in ((0, 9), (9, 50))
    ]
    assert (halves[0] + halves[1]).error_mean == pytest.approx(loss.error_mean, rel=1e-4)


def test_a_store_in_int8_reads_what_the_teacher_said_nearly(tmp_path):
    teacher, views, said = Arithmetic(), MadeViews(Listing(30)), []
    store = open_or_build(str(tmp_path), teacher, views, parts=ALL, dtype="int8", say=said.append)
    found = store.features(np.arange(30), np.arange(30) % 2)
    live = teacher.features(torch.stack([views[n][n % 2] for n in range(30)]), ALL)
    pairs = {
        "global": (found.global_BD, live.global_BD),
        "local": (found.local_BLD, live.local_BLD),
        "logits": (found.logits_BC, live.logits_BC),
        "tap.one.0": (found.taps["one.0"], live.taps["one.0"]),
    }
    assert set(store.loss) == set(pairs) == set(store.arrays)
    for name, (read, said_by_teacher) in pairs.items():
        steps = said_by_teacher.abs().amax(vector_axis(name), keepdim=True) / 127
        assert read.dtype == torch.float32
        assert ((read - said_by_teacher).abs() <= steps * 0.5001).all()
        assert not torch.equal(read, said_by_teacher)
        assert 0 < store.loss[name].error_mean <= store.loss[name].error_worst < 0.02
        assert any(f"int8 {name}: relative error" in line for line in said)
    whole = open_or_build(str(tmp_path / "whole"), teacher, views, parts=ALL, dtype="float32")
    assert store.shards.layout.row_bytes < 0.5 * whole.shards.layout.row_bytes
    assert not whole.loss
