"""The internal model: how the internal variables follow from the state and the action."""

from collections.abc import Sequence

import numpy as np

from persist_sb3.models.dynamics import DynamicsModel
from persist_sb3.models.heads import Heads
from persist_sb3.models.spec import StateSpec


class InternalModel(DynamicsModel):
    """
    ``f(x' | s, a)``, Gaussian in every internal variable. Samples keep to the variables' physical range,
    ``viability.low`` and ``viability.high``.

    :param spec: the environment's state and actions
    :param net_arch: sizes of the hidden layers
    :param members: networks in the ensemble, ``e``
    :raises ValueError: if ``members`` is below 1
    """

    def __init__(self, spec: StateSpec, net_arch: Sequence[int] = (128, 128), members: int = 5) -> None:
        nothing = np.empty(0, dtype=np.intp)
        low, high = spec.viability.low.astype(np.float32), spec.viability.high.astype(np.float32)
        heads = Heads(np.arange(spec.internal_dim), low, high, nothing, (), nothing)
        super().__init__(spec, slice(spec.observation_dim, spec.state_dim), heads, net_arch, members)
