"""Engines behind the Runtime protocol, on a pretended GPU: right answers, streams of their own, and nothing left over."""

import gc
import weakref

import numpy as np
import pytest
from cuda_parts import CLOCK_MS, DataType, FakeTensorRt
from small_parts import SIZE
from tensorrt_parts import FP16, PICTURES, answers, network, opened

from tinkit.device.cuda import Cuda
from tinkit.device.tensorrt_runtime import TensorRtRuntime
from tinkit.errors import CannotJudge, TinkitError


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_answers_are_right_at_every_batch_and_again(driver, cuda, cuda_graph):
    trt, runtime = opened(driver, cuda, cuda_graph=cuda_graph)
    with runtime:
        for batch in (4, 1, 1, 1, 3, 3, 4):
            pictures = PICTURES[::-1][:batch]
            given = runtime.run({"image": pictures})
            assert set(given) == {"embedding"}
            np.testing.assert_array_equal(given["embedding"], answers(pictures))
    # With a graph: once to run and once to record for each of the 4 times that the batch changed; else every run.
    assert trt.executions == (8 if cuda_graph else 7)
    assert driver.count("cuGraphLaunch") == (3 if cuda_graph else 0)


def test_the_protocol_is_told(driver, cuda):
    _, runtime = opened(driver, cuda)
    with runtime:
        assert (runtime.name, runtime.load_ms > 0, runtime.device_ms) == ("tensorrt", True, None)
        (image,), (embedding,) = runtime.inputs, runtime.outputs
        assert (image.name, image.dtype, image.shape) == ("image", "float32", ("batch", 3, SIZE, SIZE))
        assert (embedding.name, embedding.shape) == ("embedding", ("batch", 8))
        assert runtime.versions() == {"tensorrt": "10.3.0", "cuda_driver": "12.6"}
        assert runtime.inspector == '{"Layers": []}'
        assert runtime.conditions["batch_range"] == [1, 4]
        assert (runtime.conditions["cuda_graph"], runtime.conditions["gpu"]) == (False, "Orin")
        assert "pinned" in runtime.conditions["copies"]
        runtime.run({"image": PICTURES})
        assert runtime.device_ms == pytest.approx(CLOCK_MS * 2)  # the network and the mark, without the copies


def test_answers_are_the_callers_own(driver, cuda):
    _, runtime = opened(driver, cuda)
    with runtime:
        first = runtime.run({"image": PICTURES})["embedding"]
        runtime.run({"image": PICTURES * 0})
    np.testing.assert_array_equal(first, answers(PICTURES))


@pytest.mark.parametrize(("dtype", "name"), [(DataType.HALF, "float16"), (DataType.UINT8, "uint8")])
def test_tensors_have_their_own_types(driver, cuda, dtype, name):
    _, runtime = opened(driver, cuda, dtype=dtype, compute=lambda given: {"embedding": given["image"][:, 0, 0, :8]})
    pictures = np.arange(4 * 3 * SIZE * SIZE).reshape(PICTURES.shape).astype(name)
    with runtime:
        given = runtime.run({"image": pictures})["embedding"]
    assert given.dtype == np.dtype(name)
    np.testing.assert_array_equal(given, pictures[:, 0, 0, :8])


def test_buffers_are_made_once_for_the_largest_batch(driver, cuda):
    _, runtime = opened(driver, cuda)
    with runtime:
        sizes = sorted(len(kept) for kind, kept in driver.alive.values() if kind == "device")
        assert sizes == [4 * 8 * 4, 4 * 3 * SIZE * SIZE * 4]
        for batch in (1, 4, 2):
            runtime.run({"image": PICTURES[:batch]})
    assert (driver.count("cuMemAlloc_v2"), driver.count("cuMemHostAlloc")) == (2, 2)


def test_an_engine_of_a_fixed_batch_takes_that_one_only(driver, cuda):
    _, runtime = opened(driver, cuda, batch=2)
    with runtime:
        assert runtime.batch_range == (2, 2)
        np.testing.assert_array_equal(runtime.run({"image": PICTURES[:2]})["embedding"], answers(PICTURES[:2]))
        with pytest.raises(TinkitError, match="outside"):
            runtime.run({"image": PICTURES[:1]})


def test_a_closed_runtime_is_not_run(driver, cuda):
    _, runtime = opened(driver, cuda, cuda_graph=True)
    with runtime:
        runtime.run({"image": PICTURES})
    runtime.close()
    with pytest.raises(ValueError, match="closed"):
        runtime.run({"image": PICTURES})


def test_tensorrt_goes_before_its_stream_and_its_device(driver):
    trt = FakeTensorRt(driver, network())
    with Cuda(library=driver) as cuda:
        runtime = TensorRtRuntime(trt, b"plan", FP16, cuda)
        context, engine = weakref.ref(runtime._engine._context), weakref.ref(runtime._engine._engine)
        seen = []
        weakref.finalize(context(), lambda: seen.append("context"))
        weakref.finalize(engine(), lambda: seen.append("engine"))
        destroy = driver._cuStreamDestroy_v2
        driver._cuStreamDestroy_v2 = lambda stream: (seen.append("stream"), destroy(stream))[1]
        trt.runtimes.clear()
        runtime.close()
        gc.collect()
        assert seen == ["context", "engine", "stream"]


def test_a_cuda_graph_is_switched_on_and_off_between_runs(driver, cuda):
    _, runtime = opened(driver, cuda)
    with runtime:
        for wanted, launches in ((False, 0), (True, 2), (True, 5), (False, 5), (True, 7)):
            runtime.use_cuda_graph(wanted)
            assert runtime.conditions["cuda_graph"] is wanted
            for _ in range(3):
                np.testing.assert_array_equal(runtime.run({"image": PICTURES})["embedding"], answers(PICTURES))
            assert driver.count("cuGraphLaunch") == launches
            assert runtime.device_ms == pytest.approx(CLOCK_MS * 2)
        kinds = [kind for kind, _ in driver.alive.values()]
        assert kinds.count("graph executable") == 1
        runtime.use_cuda_graph(False)
        assert "graph executable" not in [kind for kind, _ in driver.alive.values()]
    with pytest.raises(ValueError, match="closed"):
        runtime.use_cuda_graph(True)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_second_stream_has_its_own_context_stream_and_buffers(driver, cuda, cuda_graph):
    trt, runtime = opened(driver, cuda, cuda_graph=cuda_graph)
    with runtime:
        before = kinds_alive(driver)
        with runtime.again() as other:
            assert kinds_alive(driver) == {kind: 2 * count for kind, count in before.items()}
            assert len(trt.runtimes) == 1  # nothing is loaded again
            assert other.conditions == runtime.conditions
            for batch in (4, 1, 1, 1):
                mine = runtime.run({"image": PICTURES[:batch]})["embedding"]
                theirs = other.run({"image": -PICTURES[:4]})["embedding"]
                np.testing.assert_array_equal(mine, answers(PICTURES[:batch]))
                np.testing.assert_array_equal(theirs, answers(-PICTURES))
        assert {kind: count for kind, count in kinds_alive(driver).items() if kind in before} == before
        np.testing.assert_array_equal(runtime.run({"image": PICTURES})["embedding"], answers(PICTURES))
    with pytest.raises(ValueError, match="closed"):
        runtime.again()


def kinds_alive(driver):
    kinds = [kind for kind, _ in driver.alive.values()]
    return {kind: kinds.count(kind) for kind in kinds}


def test_an_engine_stays_until_its_second_stream_is_closed_too(driver, cuda):
    _, runtime = opened(driver, cuda)
    engine = weakref.ref(runtime._engine._engine)
    other = runtime.again()
    runtime.close()
    np.testing.assert_array_equal(other.run({"image": PICTURES})["embedding"], answers(PICTURES))
    assert engine() is not None
    other.close()
    gc.collect()
    assert engine() is None


def test_a_second_stream_that_gets_no_memory_is_told_and_the_first_one_goes_on(driver, cuda):
    trt, runtime = opened(driver, cuda)
    with runtime:
        before = kinds_alive(driver)
        trt.network.fails["create_execution_context"] = "CUDA out of memory"
        with pytest.raises(TinkitError, match="too little memory"):
            runtime.again()
        assert kinds_alive(driver) == before
        np.testing.assert_array_equal(runtime.run({"image": PICTURES})["embedding"], answers(PICTURES))


@pytest.mark.parametrize(("version", "batch", "able"), [("8.6.2", -1, False), ("8.6.2", 2, True), ("10.3.0", -1, True)])
def test_tensorrt_8_has_a_second_stream_for_a_fixed_batch_only(driver, cuda, version, batch, able):
    _, runtime = opened(driver, cuda, version=version, batch=batch)
    with runtime:
        if able:
            with runtime.again() as other:
                np.testing.assert_array_equal(other.run({"image": PICTURES[:2]})["embedding"], answers(PICTURES[:2]))
            return
        with pytest.raises(CannotJudge, match="two streams") as error:
            runtime.again()
    assert error.value.seen == "TensorRT 8.6.2, batch 1 to 4"
