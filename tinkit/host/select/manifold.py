"""The map: t-SNE of all features to two dimensions, on which "far" means "of another kind" better than in the features.

t-SNE (van der Maaten and Hinton 2008) by scikit-learn, Barnes-Hut, as in Cold PAWS (arXiv 2305.10071): cosine metric, perplexity
40, 1000 iterations, on the full features, a seed. It is the slow step, so `kept_map` keeps it beside the features:
another budget or another method costs seconds. Distances on the map are euclidean.
"""

import hashlib
import os

import numpy as np
import sklearn
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from tinkit import files
from tinkit.errors import TinkitError

PERPLEXITY, ITERATIONS = 40.0, 1000
FEWEST = 5  # pictures; below it a map says nothing
WORKING_MB = 256  # of the search for neighbours


def perplexity_for(count: int, wanted=PERPLEXITY) -> float:
    """As wanted, but for few pictures at most a third of the others: about as many neighbours as perplexity times 3."""
    return min(wanted, (count - 1) / 3)


def t_sne(rows_ND, seed=0, metric="cosine", perplexity=PERPLEXITY) -> np.ndarray:
    """The map (N, 2) float64 of features (N, D). TinkitError for fewer than 5 pictures, or features that are all equal."""
    rows = np.asarray(rows_ND, np.float32)
    if len(rows) < FEWEST:
        raise TinkitError(
            "There are too few pictures for a map.", seen=f"{len(rows)} pictures", next_step="--space features"
        )
    if (rows == rows[0]).all():
        raise TinkitError("All pictures have the same features: there is nothing to choose by.")
    with sklearn.config_context(working_memory=WORKING_MB):
        found = TSNE(
            perplexity=perplexity_for(len(rows), perplexity),
            max_iter=ITERATIONS,
            metric=metric,
            random_state=seed,
        ).fit_transform(rows)
    return found.astype(np.float64)


def flat(rows_ND, seed=0) -> np.ndarray | None:
    """The two main components (N, 2): a map to look at where none was needed to choose. None for too few pictures."""
    rows = np.asarray(rows_ND, np.float32)
    if len(rows) < FEWEST or (rows == rows[0]).all():
        return None
    return PCA(2, svd_solver="randomized", random_state=seed).fit_transform(rows).astype(np.float64)


def kept_map(folder, rows_ND, **settings) -> np.ndarray:
    """`t_sne(rows, **settings)`, read from `folder` when it was made there before from the same rows in the same way."""
    rows = np.asarray(rows_ND)
    made_of = {**settings, "rows": _hash(rows), "scikit-learn": sklearn.__version__}
    path = os.path.join(folder, f"map-{files.sha256_of_json(made_of)[:16]}.npz")
    if os.path.exists(path):
        found = files.read_npz(path).get("map")
        if found is not None and found.shape == (len(rows), 2):
            return found
    found = t_sne(rows, **settings)
    files.write_npz(path, {"map": found})
    return found


def _hash(rows):
    digest = hashlib.sha256(f"{rows.dtype} {rows.shape}".encode())
    for start in range(0, len(rows), 4096):
        digest.update(np.ascontiguousarray(rows[start : start + 4096]))
    return digest.hexdigest()
