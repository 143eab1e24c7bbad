"""The real TensorRT-RTX in a process of its own, as the product runs it too: its library has crashed a process that
went on to other things (a later exception in another library's C++)."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec

import pytest


def beside_us(function, *arguments):
    """What the function gives or raises in a fresh process; skips where the bindings are not installed."""
    if find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip("the TensorRT-RTX wheels are not installed")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()
