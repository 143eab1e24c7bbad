"""Features that are not finite are said before any number is made of them: a neighbour search would quietly rank them."""

import numpy as np

from tinkit.errors import TinkitError

CHUNK = 4096
NAMES = {"teacher": "teacher", "student": "network under evaluation"}


def require_finite(rows: dict[str, np.ndarray], where: str) -> None:
    """TinkitError when rows (N, D) of a network, by its name in the pair, hold NaN or infinity; read in chunks."""
    for network, rows_ND in rows.items():
        starts = range(0, len(rows_ND), CHUNK)
        bad = sum(int((~np.isfinite(rows_ND[i : i + CHUNK]).all(axis=1)).sum()) for i in starts)
        if bad:
            raise TinkitError(
                f"The {NAMES.get(network, network)} gives features that are not finite.",
                where=where,
                seen=f"{bad} of {len(rows_ND)} pictures",
                next_step="for a bundle: another precision (tinkit export says which nodes overflow)",
            )
