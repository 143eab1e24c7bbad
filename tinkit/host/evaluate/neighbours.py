"""Exact nearest neighbours by cosine, in chunks: memory is chunk x chunk and never pictures x pictures.

faiss is used where it is installed (inner products of unit rows, exact too), numpy elsewhere; both give the same
neighbours but for the last bit of a cosine. Rows may be memory maps: no more than two chunks of them are in memory.
"""

import numpy as np

try:
    import faiss
except ImportError:
    faiss = None  # type: ignore[assignment]

CHUNK, BANK = 1024, 8192  # rows at a time: of the queries and of the bank


def unit_rows(rows_ND) -> np.ndarray:
    """Rows scaled to length 1 as float32 (N, D); a zero row stays zero, and one that is not finite becomes zero."""
    rows = np.asarray(rows_ND, np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        unit = rows / np.maximum(length, 1e-12)
    unit[~np.isfinite(length[:, 0])] = 0
    return unit


def engine() -> str:
    """What searches: "faiss VERSION" or "numpy"."""
    return "numpy" if faiss is None else f"faiss {faiss.__version__}"


def nearest(bank_ND, queries_MD, k: int, among_itself=False) -> tuple[np.ndarray, np.ndarray]:
    """(indices (M, k) int64 into the bank, cosines (M, k) float32), the nearest first; equal cosines by lower index.

    among_itself: the queries are the bank, and each leaves itself out. k is cut to what the bank has. ValueError for an
    empty bank.
    """
    return _search(bank_ND, queries_MD, np.arange(len(queries_MD)) if among_itself else None, k)


def nearest_to(rows_ND, picked_M, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The same for the pictures `picked` (indices) among all others: each leaves itself out."""
    picked = np.asarray(picked_M, np.int64)
    return _search(rows_ND, np.asarray(rows_ND[picked]), picked, k)


def _search(bank_ND, queries_MD, own_M, k):
    """own_M: the place of each query in the bank, which it leaves out; None when the queries are other pictures."""
    k = min(k, len(bank_ND) - (own_M is not None))
    if k < 1:
        raise ValueError("no neighbours in an empty bank")
    best_of = _best_by_numpy if faiss is None else _best_by_faiss
    indices, cosines = np.empty((len(queries_MD), k), np.int64), np.empty((len(queries_MD), k), np.float32)
    for start in range(0, len(queries_MD), CHUNK):
        part = slice(start, start + CHUNK)
        queries = unit_rows(queries_MD[part])
        near, found = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        for first in range(0, len(bank_ND), BANK):
            block = unit_rows(bank_ND[first : first + BANK])
            more = best_of(queries, block, None if own_M is None else own_M[part] - first, k)
            near, found = np.hstack([near, more[0] + first]), np.hstack([found, more[1]])
            near, found = _ordered(near, found, k)
        indices[part], cosines[part] = near, found
    return indices, cosines


def _best_by_numpy(queries_MD, block_ND, own_M, k):
    """(indices, cosines) of the k best of a block, in no order; of equal ones the lower indices."""
    similarity = queries_MD @ block_ND.T
    count = len(block_ND)
    if own_M is not None:
        inside = np.flatnonzero((own_M >= 0) & (own_M < count))
        similarity[inside, own_M[inside]] = -np.inf
    k = min(k, count)
    near = np.argpartition(similarity, count - k, axis=1)[:, count - k :]
    least = np.take_along_axis(similarity, near, axis=1).min(axis=1)
    for row in np.flatnonzero((similarity >= least[:, None]).sum(axis=1) > k):  # equal ones compete for the last place
        above = np.flatnonzero(similarity[row] > least[row])
        level = np.flatnonzero(similarity[row] == least[row])
        near[row] = np.append(above, level[: k - len(above)])
    return near, np.take_along_axis(similarity, near, axis=1)


def _best_by_faiss(queries_MD, block_ND, own_M, k):
    """The same by faiss, which breaks ties as it likes: two more are asked for, and rows with a tied end go to numpy."""
    cosines, near = faiss.knn(
        queries_MD, block_ND, min(k + 2, len(block_ND)), metric=faiss.METRIC_INNER_PRODUCT
    )  # k + 1 without the query itself, to see whether the last place is shared
    if own_M is not None:
        cosines[near == own_M[:, None]] = -np.inf
    near, cosines = _ordered(near, cosines, k + 1)
    if near.shape[1] > k:
        tied = np.flatnonzero(cosines[:, k - 1] == cosines[:, k])
        near, cosines = near[:, :k], cosines[:, :k]
        if len(tied):
            own = None if own_M is None else own_M[tied]
            near[tied], cosines[tied] = _best_by_numpy(queries_MD[tied], block_ND, own, k)
    return near, cosines


def _ordered(near, found, k):
    """The first k by cosine, equal ones by lower index."""
    order = np.lexsort((near, -found), axis=1)[:, :k]
    return np.take_along_axis(near, order, 1), np.take_along_axis(found, order, 1)
