"""Weight files: nothing but tensors gets in, and a network that does not fit is told tensor by tensor."""

import argparse
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tinkit.errors import TinkitError
from tinkit.host.weights import load_into, read_weights, write_weights

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.count": torch.tensor(7)}


def same(seen):
    return seen.keys() == TENSORS.keys() and all(torch.equal(seen[name], tensor) for name, tensor in TENSORS.items())


def test_round_trip(tmp_path):
    path = tmp_path / "a.safetensors"
    write_weights(path, {**TENSORS, "a.weight": TENSORS["a.weight"].T.contiguous().T}, {"made": "by a test"})
    assert same(read_weights(path))
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "teacher"])
def test_a_state_dict_is_read_bare_or_wrapped(tmp_path, wrapper):
    torch.save(TENSORS if wrapper is None else {wrapper: TENSORS, "epoch": 3}, tmp_path / "a.pth")
    assert same(read_weights(tmp_path / "a.pth"))


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path):
    torch.save({"a": Touch(str(tmp_path / "touched"))}, tmp_path / "a.pth")
    with pytest.raises(TinkitError, match="more than tensors"):
        read_weights(tmp_path / "a.pth")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("content", [{"args": argparse.Namespace(lr=1)}, nn.Linear(1, 1)], ids=["namespace", "module"])
def test_a_pickled_object_is_refused_with_a_way_out(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(TinkitError, match="more than tensors") as caught:
        read_weights(tmp_path / "a.pth")
    assert "safetensors" in caught.value.next_step


@pytest.mark.parametrize("content", [{"a": 1}, [torch.zeros(1)], torch.zeros(1)], ids=["numbers", "list", "tensor"])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(TinkitError, match="not a state dict"):
        read_weights(tmp_path / "a.pth")


def test_a_missing_file_says_where(tmp_path):
    with pytest.raises(TinkitError, match="missing") as caught:
        read_weights(tmp_path / "gone.pth")
    assert caught.value.where == str(tmp_path / "gone.pth")


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize("keep", [0, 5, 0.5])
def test_a_damaged_file_is_refused(tmp_path, ending, keep):
    path = tmp_path / f"a.{ending}"
    if ending == "safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(TinkitError, match=r"cannot be read|more than tensors"):
        read_weights(path)


def network():
    return nn.ModuleDict({"body": nn.Linear(3, 2), "head": nn.Linear(2, 5)})


def test_matching_tensors_are_loaded():
    wanted, other = network(), network()
    load_into(other, wanted.state_dict(), "memory")
    assert all(torch.equal(tensor, wanted.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_a_mismatch_names_every_kind_of_tensor():
    tensors = network().state_dict()
    tensors["body.weight"] = torch.zeros(2, 4)
    del tensors["body.bias"]
    tensors["extra"] = torch.zeros(1)
    with pytest.raises(TinkitError, match="do not fit") as caught:
        load_into(network(), tensors, "some.file")
    assert "body.weight is [2, 4], the network wants [2, 3]" in caught.value.seen
    assert "missing: body.bias" in caught.value.seen
    assert "unknown: extra" in caught.value.seen
    assert caught.value.where == "some.file"


def test_a_long_list_of_tensors_is_cut_and_counted():
    with pytest.raises(TinkitError) as caught:
        load_into(network(), {}, "some.file")
    assert "and 1 more" in caught.value.seen


def test_nothing_is_loaded_when_something_does_not_fit():
    other = network()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(TinkitError):
        load_into(other, {**network().state_dict(), "extra": torch.zeros(1)}, "memory")
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_an_optional_head_may_be_absent_or_come_along():
    wanted, bare = network(), nn.ModuleDict({"body": nn.Linear(3, 2)})
    load_into(bare, wanted.state_dict(), "memory", optional=("head",))
    assert torch.equal(bare["body"].weight, wanted["body"].weight)
    load_into(wanted, bare.state_dict(), "memory", optional=("head",))


def test_a_file_that_does_not_fit_is_a_clear_error_and_leaves_the_old_one(tmp_path, full_disk):
    (tmp_path / "a").write_text("old")
    with pytest.raises(TinkitError, match="Could not finish writing") as caught, full_disk():
        write_weights(tmp_path / "a", {"a": torch.zeros(100_000)})
    assert "ulimit" in caught.value.next_step
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]
