"""Centred kernel alignment of two sets of rows: 1 when one is the other turned, scaled or moved; widths may differ.

Linear CKA (Kornblith et al. 2019, arXiv 1905.00414) is biased towards 1 when pictures are few for the width. The debiased
form takes the U-statistic of HSIC (Song et al. 2012, "Feature selection via dependence maximization"; for CKA Murphy et al.
2024, "Correcting biased centered kernel alignment measures in biological and artificial neural networks"): it leaves out
what a picture has in common with itself. Both are computed from D x D products, so N may be large; only their intervals
need M x M matrices, of a sample.
"""

from typing import Any

import numpy as np

from tinkit.host.evaluate.resampling import interval_of_halves

CHUNK = 4096
FEWEST = 4  # pictures that the U-statistic needs
PAIRS = ("aa", "bb", "ab")


def cka(a_ND, b_ND) -> tuple[float, float]:
    """(linear, debiased): the first between 0 and 1, the second about 0 when the two have nothing in common.

    Rows may be memory maps. A row that is not finite counts as zeros. 0 when one side is constant. ValueError for fewer
    than four rows.
    """
    count = len(a_ND)
    if count < FEWEST or len(b_ND) != count:
        raise ValueError(f"CKA of {count} and {len(b_ND)} rows: as many on both sides, and at least {FEWEST}")
    sides = {"a": (a_ND, _mean(a_ND)), "b": (b_ND, _mean(b_ND))}
    products: dict[str, Any] = dict.fromkeys(PAIRS, 0.0)  # D x D
    own, length = dict.fromkeys(PAIRS, 0.0), dict.fromkeys(sides, 0.0)
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        rows = {side: _centred(all_ND[part], mean_D) for side, (all_ND, mean_D) in sides.items()}
        squares = {side: (part_ND**2).sum(axis=1) for side, part_ND in rows.items()}
        length = {side: length[side] + float(squares[side].sum()) for side in sides}
        for pair in PAIRS:
            products[pair] = products[pair] + rows[pair[0]].T @ rows[pair[1]]
            own[pair] += float(squares[pair[0]] @ squares[pair[1]])
    biased = {pair: float((product**2).sum()) for pair, product in products.items()}
    debiased = {
        pair: biased[pair]
        - own[pair] * count / (count - 2)
        + length[pair[0]] * length[pair[1]] / ((count - 1) * (count - 2))
        for pair in PAIRS
    }  # Song's formula for rows of mean 0, where a row's sum over the others is minus its own square
    return _ratio(biased), _ratio(debiased)


def intervals(a_MD, b_MD, halves_RM, values, pictures) -> list[tuple[float, float]]:
    """95 % intervals of the two numbers `values` over `pictures` pictures, from the halves of a sample of M of them."""
    first, second = (_gram(rows) for rows in (a_MD, b_MD))
    count = len(first)
    biased = _ratios_of_halves(first, second, halves_RM, lost=0)
    for gram in (first, second):
        np.fill_diagonal(gram, 0)
    debiased = _ratios_of_halves(first, second, halves_RM, lost=2)
    return [
        interval_of_halves(values[0], biased, count, pictures, low=0, high=1),
        interval_of_halves(values[1], debiased, count, pictures),
    ]


def _read(rows_ND):
    rows = np.asarray(rows_ND, np.float64)
    return np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)


def _centred(rows_ND, mean_D):
    """Rows less their mean; exactly 0 where nothing but rounding is left."""
    rows = _read(rows_ND) - mean_D
    return np.where(np.abs(rows) > 1e-12 * np.abs(mean_D), rows, 0.0)


def _mean(rows_ND):
    total = sum(_read(rows_ND[start : start + CHUNK]).sum(axis=0) for start in range(0, len(rows_ND), CHUNK))
    return total / len(rows_ND)


def _ratio(hsic):
    """hsic(a, b) over the root of hsic(a, a) hsic(b, b); 0 where one side does not vary."""
    scale = max(hsic["aa"], 0.0) * max(hsic["bb"], 0.0)
    return float(hsic["ab"] / np.sqrt(scale)) if scale > 0 else 0.0


def _gram(rows_MD):
    """Inner products of the centred rows, float32, of mean 1 on the diagonal."""
    rows = _centred(rows_MD, _mean(rows_MD))
    rows /= max(np.sqrt((rows**2).sum(axis=1).mean()), 1e-30)
    rows = rows.astype(np.float32)
    return rows @ rows.T


def _ratios_of_halves(a_MM, b_MM, halves_RM, lost):
    hsics = [_hsic_of_halves(*pair, halves_RM, lost) for pair in ((a_MM, a_MM), (b_MM, b_MM), (a_MM, b_MM))]
    return [_ratio({"aa": one, "bb": other, "ab": both}) for one, other, both in zip(*hsics)]


def _hsic_of_halves(k_MM, l_MM, halves_RM, lost):
    """HSIC of each half, up to a factor: lost 0 for the biased form; 2 and zero diagonals for Song's U-statistic."""
    half = int(halves_RM[0].sum())
    across_k, across_l = halves_RM @ k_MM, halves_RM @ l_MM
    both = ((halves_RM @ (k_MM * l_MM)) * halves_RM).sum(axis=1, dtype=np.float64)
    through = (across_k * across_l * halves_RM).sum(axis=1, dtype=np.float64)
    sums = [(across * halves_RM).sum(axis=1, dtype=np.float64) for across in (across_k, across_l)]
    return both - 2 * through / (half - lost) + sums[0] * sums[1] / ((half - lost // 2) * (half - lost))
