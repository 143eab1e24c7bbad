"""onnxruntime behind the protocol: names, answers, and clear words when it is missing or the model is damaged."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_parts import PREPROCESSING, small_target

from tinkit.device.runtime import OnnxRuntime, Tensor, open_runtime
from tinkit.errors import EXIT_NO_VERDICT, CannotJudge, TinkitError
from tinkit.pixels import normalise


def test_runs_by_name_and_says_under_which_conditions(model_path, exam):
    with open_runtime("onnxruntime", model_path, threads=1) as runtime:
        answers = runtime.run({"image": normalise(exam.pixels, PREPROCESSING)})
        assert runtime.inputs == (Tensor("image", "float32", ("batch", 3, 16, 16)),)
        assert [output.name for output in runtime.outputs] == ["embedding"]
        assert runtime.conditions["intra_op_threads"] == 1
        assert runtime.conditions["provider"] == "CPUExecutionProvider"
        assert runtime.load_ms > 0
        assert set(runtime.versions()) == {"onnxruntime"}
    np.testing.assert_allclose(answers["embedding"], exam.answers["embedding"], atol=1e-5)


def test_a_closed_runtime_does_not_run(model_path):
    with open_runtime("onnxruntime", model_path) as runtime:
        pass
    with pytest.raises(ValueError, match="closed"):
        runtime.run({})


def test_a_second_stream_is_the_same_session_and_stays_open(model_path, exam):
    feeds = {"image": normalise(exam.pixels, PREPROCESSING)}
    with OnnxRuntime(model_path) as runtime:
        with runtime.again() as other, ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(one.run, feeds) for one in (runtime, other) * 20]
            for run in runs:
                np.testing.assert_allclose(run.result()["embedding"], exam.answers["embedding"], atol=1e-5)
        assert set(runtime.run(feeds)) == {"embedding"}


def test_missing_onnxruntime_is_no_verdict_and_names_the_extra(model_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CannotJudge) as error:
        OnnxRuntime(model_path)
    assert 'pip install "tinkit[cpu]"' in error.value.next_step
    assert error.value.exit_code == EXIT_NO_VERDICT


def test_a_damaged_model_is_named(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(TinkitError) as error:
        OnnxRuntime(path)
    assert error.value.where == str(path)


@pytest.mark.parametrize(
    "feeds", [{}, {"image": np.zeros((1, 3, 9, 9), np.float32)}, {"image": np.zeros((1, 3, 16, 16))}]
)
def test_wrong_feeds_are_told_in_the_runtimes_words(model_path, feeds):
    with OnnxRuntime(model_path) as runtime, pytest.raises(TinkitError, match="does not run"):
        runtime.run(feeds)


def test_tensorrt_is_not_pretended(model_path, monkeypatch):
    monkeypatch.setattr("tinkit.device.tensorrt_runtime.engines.find_tensorrt", lambda: None)
    with pytest.raises(CannotJudge, match="TensorRT is missing"):
        open_runtime("tensorrt", model_path, target=small_target(runtime="tensorrt"))


def test_an_unknown_runtime_is_a_programmers_error(model_path):
    with pytest.raises(ValueError, match="unknown runtime"):
        open_runtime("tensorflow", model_path)
