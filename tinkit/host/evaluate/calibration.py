"""Does a classifier know how sure it may be? Reliability and the expected calibration error (Guo et al., arXiv 1706.04599).

Convention: the confidence of a picture is the probability of the class answered with. Bins are equally wide over 0..1 and
hold (low, high], the first also 0, as in that paper's code; torchmetrics' [low, high) differs at exact edges only.
"""

import numpy as np

BINS = 15


def expected_calibration_error(confidence_N, right_N, bins: int = BINS) -> float:
    """Sum over bins of (share of the pictures) x |accuracy - mean confidence|, 0..1, L1 norm; 0 for no pictures.

    Few pictures make it too large, as a bin of few is rarely right as often as it says: compare networks on the same
    pictures, never across sets of different size.
    """
    count, confidence, right = _binned(confidence_N, right_N, bins)
    return float(np.abs(right - confidence).sum() / max(count.sum(), 1))


def reliability(confidence_N, right_N, bins: int = BINS) -> dict:
    """{"bins": [{"low", "high", "confidence", "accuracy", "count"}]}, means of the pictures of each bin; empty bins left out."""
    count, confidence, right = _binned(confidence_N, right_N, bins)
    return {
        "bins": [
            {
                "low": bin_ / bins,
                "high": (bin_ + 1) / bins,
                "confidence": float(confidence[bin_] / count[bin_]),
                "accuracy": float(right[bin_] / count[bin_]),
                "count": int(count[bin_]),
            }
            for bin_ in np.flatnonzero(count)
        ]
    }


def _binned(confidence_N, right_N, bins):
    """Of each bin: (pictures, sum of their confidence, how many of them are right). ValueError outside 0..1."""
    confidence, right = np.asarray(confidence_N, np.float64), np.asarray(right_N, np.float64)
    if confidence.shape != right.shape or confidence.ndim != 1:
        raise ValueError(f"confidence {confidence.shape} and right {right.shape}: one value a picture each")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("a confidence outside 0..1")
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    place = np.searchsorted(edges, confidence, side="left")
    return [np.bincount(place, weights, bins) for weights in (np.ones_like(confidence), confidence, right)]
