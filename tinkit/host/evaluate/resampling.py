"""95 % intervals by the percentile bootstrap over pictures (Efron 1979), with a seed; scipy does the work."""

from collections.abc import Callable

import numpy as np
from scipy import stats

RESAMPLES, LEVEL, SEED = 1000, 0.95, 0


def interval(statistic: Callable, *columns_N, resamples=RESAMPLES, seed=SEED) -> tuple[float, float]:
    """(low, high) of `statistic(*columns)`, a number, the columns resampled together; each is one value per picture, (N,).

    The value itself twice where resampling has nothing to vary (fewer than two pictures).
    """
    columns = [np.asarray(column) for column in columns_N]
    if len(columns[0]) < 2:
        value = float(statistic(*columns))
        return value, value
    found = stats.bootstrap(
        columns,
        statistic,
        paired=True,
        vectorized=False,
        n_resamples=resamples,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def interval_of_mean(values_N, resamples=RESAMPLES, seed=SEED) -> tuple[float, float]:
    """The same for the mean of one value per picture."""
    return interval(np.mean, np.asarray(values_N, np.float64), resamples=resamples, seed=seed)
