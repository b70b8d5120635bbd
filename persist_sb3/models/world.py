"""The world model: how the observation follows from the state and the action."""

from collections.abc import Sequence

from persist_sb3.models.dynamics import DynamicsModel
from persist_sb3.models.heads import Heads
from persist_sb3.models.observation import ObservationModel, check_shown
from persist_sb3.models.spec import StateSpec


class WorldModel(ObservationModel, DynamicsModel):
    """
    ``p(o' | s, a)`` of the flattened observation: Gaussian in the entries of a Box, categorical in those of a Discrete
    or MultiDiscrete, Bernoulli in those of a MultiBinary. Samples keep to the bounds of a Box.

    :param spec: the environment's state and actions
    :param net_arch: sizes of the hidden layers
    :param members: networks in the ensemble, ``e``
    :param shown: internal variables that the observation shows: the column of the flattened observation and the index
        of the variable, two numbers each. In imagination those columns repeat what the internal model says, unless
        :meth:`compare` found them to differ
    :raises ValueError: if ``members`` is below 1, or there is no such column or variable
    """

    def __init__(
        self,
        spec: StateSpec,
        net_arch: Sequence[int] = (128, 128),
        members: int = 5,
        shown: Sequence[Sequence[int]] = (),
    ) -> None:
        pairs = check_shown(spec, shown)
        heads = Heads.of_space(spec.observation_space)
        super().__init__(spec, slice(0, spec.observation_dim), heads, net_arch, members, shown=pairs)
        self._show(pairs)
