"""When a sample of imagined futures is safe enough."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Criterion = Literal["probability", "worst_case", "cvar"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

#: So that 9 of 10 are 0.9 of them, whatever the rounding.
ROUNDING = 1e-9


def cvar(values: Floats, share: float) -> Floats:
    """
    The conditional value at risk of a sample: the mean of its lowest share, of which the last value may count in part
    (Rockafellar & Uryasev, "Optimization of conditional value-at-risk", Journal of Risk, 2000).

    :param values: ``(r, k)``
    :param share: of the sample, in ``[0, 1]``; less than one value counts as one
    :return: ``(r,)``
    """
    count = values.shape[1]
    tail = max(share * count, 1.0)
    weights = (tail - np.arange(count)).clip(0.0, 1.0) / tail
    mean: Floats = (np.sort(values, axis=1) * weights.astype(np.float32)).sum(axis=1)
    return mean


def passes(slack: Floats, criterion: Criterion, conf: float) -> NDArray[np.bool_]:
    """
    - ``"probability"``: a share ``conf`` of the futures is safe;
    - ``"worst_case"``: all are;
    - ``"cvar"``: the worst share ``1 - conf`` of them is safe on average, so that how far some go beyond the limits
      counts, and not only how many.

    :param slack: by how much each future is safe, negative where it is not, ``(r, k)``
    :param criterion: which of these is asked
    :param conf: confidence, in ``(0, 1]``
    :return: ``(r,)``
    """
    if criterion == "cvar":
        return np.greater_equal(cvar(slack, 1.0 - conf), 0.0)
    safe: NDArray[np.bool_] = np.greater_equal(slack, 0.0)
    if criterion == "worst_case":
        return np.logical_and.reduce(safe, axis=1)
    enough: NDArray[np.bool_] = safe.sum(axis=1) >= conf * slack.shape[1] - ROUNDING
    return enough
