"""The internal model: how the internal variables follow from the state and the action."""

from collections.abc import Sequence

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
        heads = Heads.of_numbers(spec.viability.low, spec.viability.high)
        super().__init__(spec, slice(spec.observation_dim, spec.state_dim), heads, net_arch, members)
