"""How many bytes a view's features take on disk, before anything is written; and a number of bytes in words."""

import math

from tinkit.host.features import Features
from tinkit.host.store.identity import TAP
from tinkit.host.store.precision import packed


def told_size(count: float) -> str:
    """ "512 bytes", "12.9 kB", "3.0 MB", "1.2 GB": steps of a thousand."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count:.0f} bytes"


def bytes_per_row(features: Features, dtype: str, grid: int | None = None) -> int:
    """Of one view, for features like these (any B); dtype and grid as in `Job`."""
    arrays = {"global": features.global_BD, "logits": features.logits_BC}
    arrays.update({TAP + name: tap for name, tap in features.taps.items()})
    if features.local_BLD is not None and features.grid is not None:
        height, width = features.grid if grid is None else (min(grid, features.grid[0]), min(grid, features.grid[1]))
        arrays["local"] = features.local_BLD[:1, :1].expand(-1, height * width, -1)
    stored = [
        tensor
        for name, values in arrays.items()
        if values is not None
        for tensor in packed(name, values[:1], dtype).values()
    ]
    return sum(math.prod(tensor.shape[1:]) * tensor.element_size() for tensor in stored)
