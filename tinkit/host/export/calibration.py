"""The range of every activation that int8 may round, from the histograms of one pass over the user's own pictures.

int8 has 256 steps for a whole tensor, so it matters where they end: at the largest value ever seen ("minmax"), before
the last rare values ("percentile"), or where the rounded distribution looks most like the exact one ("entropy").
All three are read from the same histograms, and which is best is for the exam to say. No tensor is kept: the memory
depends on the model, not on the number of pictures.
"""

import dataclasses

import numpy as np
import onnx
from onnx import TensorProto, helper

from tinkit.errors import TinkitError

CALIBRATIONS = ("minmax", "percentile", "entropy")
TOUCHED = ("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip")  # their float inputs and outputs are watched
BINS = 2048  # a side
LEVELS = 128  # of int8, a side
PERCENTILE = 99.99
FEW = 8  # values in a bin on average: below that a distribution is noise
STEP = 8  # bins between two limits that the entropy search tries
BATCH = 4  # pictures at once
GROUP = 256  # tensors fetched by one session: what is held at once is GROUP x BATCH activations


def calibrate(model, feeds) -> "Histograms":
    """`Histograms` of the float activations of the fp32 `model` that `int8.to_int8` may ask for.

    `feeds` is an iterable of {input: array} and is read once; a feed of many pictures is cut into batches of 4 where the
    batch of the model is free. Runs in onnxruntime without graph optimisation, so that every tensor exists.
    Raises TinkitError when an activation is not finite, or when there is no picture.
    """
    names = _watched(model)
    inputs = {value.name for value in model.graph.input}
    histograms = {name: _Histogram() for name in names}
    fetched = [name for name in names if name not in inputs]
    sessions = [(group, _session(model, group)) for group in _groups(fetched)]
    pictures = 0
    for feed in feeds:
        for part in _parts(model, feed):
            pictures += len(next(iter(part.values())))
            for name in inputs & histograms.keys():
                histograms[name].add(part[name], name)
            for group, session in sessions:
                for name, values in zip(group, session.run(group, part)):
                    histograms[name].add(values, name)
    if not pictures:
        raise TinkitError("There is no picture to calibrate int8 with.", next_step="give some pictures of your domain")
    return Histograms({name: one for name, one in histograms.items() if one.total}, pictures)


@dataclasses.dataclass(frozen=True)
class Histograms:
    """Tensor name -> histogram, of `pictures` pictures."""

    tensors: dict
    pictures: int

    def ranges(self, how: str) -> dict[str, tuple[float, float]]:
        """{tensor: (low, high)} with low <= 0 <= high, by one of CALIBRATIONS.

        "minmax": all that was seen. "percentile": a tensor with both signs ends where 0.01 % of its values lie beyond on
        each side, a tensor without negative values at 0 and its 99.99th percentile. "entropy": see `entropy_limit`; a
        tensor with both signs is cut at the same distance on both sides, and never beyond what was seen. A tensor with few
        values (fewer than 8 for each of the 2048 bins: pooled features of few pictures) keeps all that was seen there,
        because the search would read noise.
        """
        if how not in CALIBRATIONS:
            raise ValueError(f"calibration {how!r}: one of {', '.join(CALIBRATIONS)}")
        return {name: one.range(how) for name, one in self.tensors.items()}


def entropy_limit(counts) -> int:
    """How many of the bins of |x| (equal widths, from 0) int8 should cover: those with the least KL divergence.

    As in NVIDIA's talk "8-bit inference with TensorRT" (Migacz, GTC 2017), in our reading: for every limit the reference
    is the histogram up to it, with all that lies beyond in its last bin; the candidate is the histogram up to it merged
    into 128 levels, each spread evenly over those of its bins that are not empty; a bin filled only by what lies beyond
    counts as one value there, so that the divergence is finite. The first bin is set to the second, because the exact
    zeros behind a ReLU cost nothing at any limit and drown the rest.
    """
    counts = np.array(counts, np.float64)
    counts[0] = counts[1]
    last = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    if last <= LEVELS:
        return last
    limits = sorted({*range(LEVELS, last, STEP), last})
    return min(limits, key=lambda limit: (_divergence(counts, limit), -limit))


def _divergence(counts, limit) -> float:
    kept = counts[:limit]
    reference = kept.copy()
    reference[-1] += counts[limit:].sum()
    level = np.arange(limit) * LEVELS // limit
    filled = reference > 0
    sums = np.bincount(level, kept, LEVELS)
    bins = np.bincount(level, filled, LEVELS)
    candidate = np.where(filled, np.maximum((sums / np.maximum(bins, 1))[level], 1.0), 0.0)
    reference, candidate = reference / reference.sum(), candidate / candidate.sum()
    here = reference > 0
    return float(np.sum(reference[here] * np.log(reference[here] / candidate[here])))


class _Histogram:
    """Counts on both sides of zero in bins of one width, which doubles (pairs of bins merge) when a value is outside."""

    def __init__(self):
        self.sides = np.zeros((2, BINS), np.int64)  # row 0: x < 0 by |x|, row 1: x >= 0
        self.width, self.low, self.high, self.total = 0.0, 0.0, 0.0, 0

    def add(self, values, name) -> None:
        values = np.asarray(values, np.float32).ravel()
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low) or not np.isfinite(high):
            raise TinkitError("An activation of the fp32 model is not finite.", where=name, seen=f"{low} to {high}")
        self.low, self.high, self.total = min(self.low, low), max(self.high, high), self.total + values.size
        self._widen(max(-low, high))
        negative = values < 0
        for side, part in enumerate((-values[negative], values[~negative])):
            if part.size and self.width:
                bins = np.minimum((part / np.float32(self.width)).astype(np.int64), BINS - 1)
                self.sides[side] += np.bincount(bins, minlength=BINS)
            else:
                self.sides[side, 0] += part.size

    def range(self, how) -> tuple[float, float]:
        if how == "minmax" or not self.width:
            return self.low, self.high
        if how == "entropy":
            if self.total < FEW * BINS:
                return self.low, self.high
            limit = entropy_limit(self.sides.sum(0)) * self.width
            return max(self.low, -limit), min(self.high, limit)
        beyond = self.total * (1 - PERCENTILE / 100)
        return max(self.low, -self._end(0, beyond)), min(self.high, self._end(1, beyond))

    def _end(self, side, beyond) -> float:
        """The |x| that about `beyond` values of one side exceed; linear inside of a bin. 0 where the side has fewer."""
        above = self.sides[side].sum() - np.cumsum(self.sides[side])  # values in the bins after each
        if self.sides[side].sum() <= beyond:
            return 0.0
        index = int(np.argmax(above <= beyond))
        count = self.sides[side, index]
        return float(self.width * (index + 1 - (beyond - above[index]) / max(count, 1)))

    def _widen(self, largest) -> None:
        if not self.width and largest:
            self.width = max(largest / BINS, float(np.finfo(np.float32).tiny))
        while largest > self.width * BINS:
            merged = self.sides.reshape(2, BINS // 2, 2).sum(2)
            self.sides = np.concatenate([merged, np.zeros_like(merged)], 1)
            self.width *= 2


def _watched(model) -> list[str]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        value.name
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    floats -= {tensor.name for tensor in model.graph.initializer}
    names = {name: None for node in model.graph.node if node.op_type in TOUCHED for name in (*node.input, *node.output)}
    return [name for name in names if name in floats]


def _groups(names) -> list[list[str]]:
    return [names[start : start + GROUP] for start in range(0, len(names), GROUP)]


def _session(model, names):
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _parts(model, feed):
    """`feed`, or pieces of it with at most BATCH pictures where the first dimension of every input is free."""
    values = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input if value.name in feed}
    if any(not dims or dims[0].HasField("dim_value") for dims in values.values()):
        yield feed
        return
    for start in range(0, len(next(iter(feed.values()))), BATCH):
        yield {name: array[start : start + BATCH] for name, array in feed.items()}
