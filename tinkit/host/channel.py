"""How a worker process hands a result to the process that asked for it, large arrays at the price of two copies.

Pickle protocol 5 (PEP 574) takes the memory of numpy arrays and torch tensors out of the stream. What is small goes
through the pipe; what is large is laid into a block of anonymous memory (memfd) that both sides map, and copied out at
once. The asker names the block (a slot) with every item, and no slot twice in flight, so no lock is needed; a worker may
be killed at any moment, and the memory goes with the last process that has it open. Where the system has no memfd,
everything goes through the pipe. Nothing here is ever written to a disk.
"""

import io
import mmap
import os
import pickle
import sys
from multiprocessing import reduction
from typing import Any

import numpy as np

INLINE_BYTES = 32_768  # up to here through the pipe, which takes a few such messages without blocking
ALIGN = 64


class Outbox:
    """The worker's side: sends (kind, number, value) with the large parts of the value in the block of a slot."""

    def __init__(self, connection):
        self._connection = connection
        self._blocks: dict[int, _Block] = {}

    def send(self, kind: str, number: int, value: Any, slot: int):
        parts = _flatten(value)
        sizes = [len(part) for part in parts]
        if sum(sizes) <= INLINE_BYTES or not hasattr(os, "memfd_create"):
            self._connection.send((kind, number, [bytes(part) for part in parts]))
            return
        fresh = slot not in self._blocks
        if fresh:
            self._blocks[slot] = _Block(os.memfd_create("tinkit"))
        block = self._blocks[slot]
        starts, total = _starts(sizes)
        block.grow(total)
        for start, part in zip(starts, parts):
            block.map[start : start + len(part)] = part
        self._connection.send((kind, number, (slot, sizes, fresh)))
        if fresh:
            reduction.send_handle(self._connection, block.descriptor, None)


class Inbox:
    """The asker's side. What it returns is memory of its own: writable, and not changed by the next result."""

    def __init__(self, connection):
        self._connection = connection
        self._blocks: dict[int, _Block] = {}

    def receive(self) -> tuple[str, int, Any]:
        """The next (kind, number, value). EOFError or OSError when the worker is gone."""
        kind, number, place = self._connection.recv()
        if isinstance(place, list):
            return kind, number, _rebuild([bytearray(part) for part in place])
        slot, sizes, fresh = place
        if fresh:
            self._blocks[slot] = _Block(reduction.recv_handle(self._connection))
        starts, total = _starts(sizes)
        copy = np.empty(total, np.uint8)
        copy[:] = self._blocks[slot].bytes(total)
        return kind, number, _rebuild([copy.data[start : start + size] for start, size in zip(starts, sizes)])

    def close(self):
        for block in self._blocks.values():
            block.close()
        self._blocks.clear()


class _Block:
    """An open memory file and its map."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.map: Any = b""

    def grow(self, size):
        """At least `size` bytes; OSError, not a signal, when there is no memory."""
        if len(self.map) < size:
            os.posix_fallocate(self.descriptor, 0, size + size // 4)
            self._map()

    def bytes(self, size) -> np.ndarray:
        if len(self.map) < size:
            self._map()
        return np.frombuffer(self.map, np.uint8, size)

    def _map(self):
        if self.map:
            self.map.close()
        self.map = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)

    def close(self):
        if self.map:
            self.map.close()
        os.close(self.descriptor)


class _Pickler(pickle.Pickler):
    """Torch tensors as their bytes, which pickle may then leave out of its stream; they arrive contiguous."""

    def reducer_override(self, value):
        torch = sys.modules.get("torch")
        if torch is None or type(value) is not torch.Tensor or value.device.type != "cpu":
            return NotImplemented
        if value.layout != torch.strided or value.is_quantized:
            return NotImplemented
        data = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        return _tensor, (data, value.dtype, tuple(value.shape))


def _tensor(data, dtype, shape):
    import torch

    return torch.from_numpy(data).view(dtype).reshape(shape)


def _flatten(value) -> list[memoryview]:
    """The pickle stream and then the buffers it left out."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    return [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]


def _rebuild(parts):
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301 - written by a process that this one started


def _starts(sizes) -> tuple[list[int], int]:
    """Where each part begins in a block, aligned, and how many bytes that takes."""
    starts, total = [], 0
    for size in sizes:
        starts.append(total)
        total += -(-size // ALIGN) * ALIGN
    return starts, total
