"""A finished store as its readers see it: features of pictures and views, whatever dtype and shards they lie in."""

from dataclasses import dataclass, field

import numpy as np
import torch

from tinkit.host.features import Features
from tinkit.host.store.identity import TAP
from tinkit.host.store.mapped import InUse, Shards
from tinkit.host.store.precision import SCALE, Loss, unpacked


@dataclass(frozen=True)
class FeatureStore:
    """A finished store, opened for reading.

    `views`: K, of each picture. `grid`: (height, width) of the local features. `bad`: sorted numbers of pictures put aside,
    whose rows are zeros; `bad_reasons` says why. `pictures_N`, `offsets_K`: where this store's pictures and views are in the
    shards, None for in order.
    """

    path: str
    views: int
    shards: Shards
    pictures_N: np.ndarray | None = None
    offsets_K: np.ndarray | None = None
    in_use: InUse | None = field(default=None, repr=False)

    def __len__(self):
        return self.shards.layout.pictures if self.pictures_N is None else len(self.pictures_N)

    @property
    def grid(self) -> tuple[int, int] | None:
        return self.shards.layout.grid

    @property
    def loss(self) -> dict[str, Loss]:
        """What int8 cost when it was written, by array; empty for other dtypes."""
        return self.shards.loss

    @property
    def bad(self) -> np.ndarray:
        return np.array(sorted(self.bad_reasons), np.int64)

    @property
    def bad_reasons(self) -> dict[int, str]:
        # A store opened through another's rows holds none of its bad pictures.
        return self.shards.bad if self.pictures_N is None else {}

    @property
    def arrays(self) -> dict[str, "Column"]:
        """Every array by name, a row for each view of each picture: row = picture * K + view."""
        return {name: Column(self, name) for name in self.shards.layout.arrays if not name.endswith(SCALE)}

    def features(self, pictures_B, views_B, parts=None, dtype: torch.dtype | None = torch.float32) -> Features:
        """`Features` of the given picture indices and view numbers; all that is stored, or the named parts.

        dtype None: as stored (float16 to be widened on the GPU, say); int8 comes as float32 then.
        """
        rows_B = self._stored_rows(np.asarray(pictures_B, np.int64), np.asarray(views_B, np.int64))
        taken = {
            name: self._tensor(name, rows_B, dtype)
            for name in self.arrays
            if parts is None or name == "global" or name in parts or (name.startswith(TAP) and "taps" in parts)
        }
        taps = {name[len(TAP) :]: rows for name, rows in taken.items() if name.startswith(TAP)}
        return Features(taken["global"], taken.get("local"), self.grid, taken.get("logits"), taps)

    def _stored_rows(self, pictures_B, views_B) -> np.ndarray:
        if self.pictures_N is not None:
            pictures_B = self.pictures_N[pictures_B]
        if self.offsets_K is not None:
            views_B = self.offsets_K[views_B]
        return pictures_B * self.shards.layout.views + views_B

    def _tensor(self, name, rows_B, dtype) -> torch.Tensor:
        scale = name + SCALE
        scales = torch.from_numpy(self.shards.rows(scale, rows_B)) if scale in self.shards.layout.arrays else None
        return unpacked(torch.from_numpy(self.shards.rows(name, rows_B)), scales, dtype)

    def global_rows(self, view=0) -> np.ndarray:
        """The global features of one view of all pictures, (N, D); float16 or float32 as stored, int8 as float32."""
        return self.arrays["global"][view :: self.views]


@dataclass(frozen=True)
class Column:
    """One array of a store as if it were in memory: length, shape, dtype, indexing by number, slice or numbers."""

    store: FeatureStore
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.store.shards.layout.arrays[self.name].shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        own = np.dtype(self.store.shards.layout.arrays[self.name].dtype)
        return np.dtype(np.float32) if own == np.int8 else own

    def __len__(self):
        return len(self.store) * self.store.views

    def __getitem__(self, which) -> np.ndarray:
        if isinstance(which, slice):
            rows = range(len(self))[which]
            in_place = None if self._is_moved else self.store.shards.view(self.name, rows)
            return self._rows(np.arange(rows.start, rows.stop, rows.step)) if in_place is None else in_place
        if isinstance(which, tuple):
            return self[which[0]][(slice(None),) + which[1:]]
        which = np.asarray(which)
        rows = np.arange(len(self))[which] if which.dtype == bool else np.where(which < 0, which + len(self), which)
        return self._rows(rows.ravel()).reshape(*rows.shape, *self.shape[1:])

    @property
    def _is_moved(self) -> bool:
        store = self.store
        return store.pictures_N is not None or store.offsets_K is not None or self.dtype != self._stored_dtype

    @property
    def _stored_dtype(self) -> np.dtype:
        return np.dtype(self.store.shards.layout.arrays[self.name].dtype)

    def _rows(self, rows) -> np.ndarray:
        stored = self.store._stored_rows(*np.divmod(rows, self.store.views))
        return self.store._tensor(self.name, stored, None).numpy()

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self[:], dtype)
