"""Exact nearest neighbours by cosine, in chunks: memory is chunk x bank and never pictures x pictures.

faiss is used where it is installed (IndexFlatIP, exact too), numpy elsewhere. Rows may be memory maps.
"""

import numpy as np

CHUNK = 512


def unit_rows(rows_ND) -> np.ndarray:
    """Rows scaled to length 1 as float32 (N, D); a zero row stays zero."""
    rows = np.asarray(rows_ND, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def nearest(bank_ND, queries_MD, k: int, among_itself=False) -> tuple[np.ndarray, np.ndarray]:
    """(indices (M, k) int64 into the bank, cosines (M, k) float32), the nearest first; equal cosines by lower index.

    among_itself: the queries are the bank, and each leaves itself out. k is cut to what the bank has. ValueError for an
    empty bank.
    """
    bank = unit_rows(bank_ND)
    k = min(k, len(bank) - among_itself)
    if k < 1:
        raise ValueError("no neighbours in an empty bank")
    indices, cosines = np.empty((len(queries_MD), k), np.int64), np.empty((len(queries_MD), k), np.float32)
    for start in range(0, len(queries_MD), CHUNK):
        part = slice(start, min(start + CHUNK, len(queries_MD)))
        similarity = unit_rows(queries_MD[part]) @ bank.T
        if among_itself:
            similarity[np.arange(part.stop - start), np.arange(start, part.stop)] = -np.inf
        near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(similarity, near, axis=1)
        order = np.lexsort((near, -found), axis=1)
        indices[part], cosines[part] = np.take_along_axis(near, order, 1), np.take_along_axis(found, order, 1)
    return indices, cosines
