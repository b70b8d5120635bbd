"""The world model: how the observation follows from the state and the action."""

from collections.abc import Sequence

import torch

from persist_sb3.models.dynamics import DynamicsModel
from persist_sb3.models.heads import Heads
from persist_sb3.models.spec import StateSpec


class WorldModel(DynamicsModel):
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

    #: Which of the columns in ``shown`` have always been true, bool.
    faithful: torch.Tensor

    def __init__(
        self,
        spec: StateSpec,
        net_arch: Sequence[int] = (128, 128),
        members: int = 5,
        shown: Sequence[Sequence[int]] = (),
    ) -> None:
        pairs = [[int(column), int(variable)] for column, variable in shown]
        for column, variable in pairs:
            if not (0 <= column < spec.observation_dim and 0 <= variable < spec.internal_dim):
                raise ValueError(
                    f"shown={pairs}: there is no observation column {column} or no internal variable {variable}; there "
                    f"are {spec.observation_dim} columns and {spec.internal_dim} variables"
                )
        heads = Heads.of_space(spec.observation_space)
        super().__init__(spec, slice(0, spec.observation_dim), heads, net_arch, members, shown=pairs)
        self.shown = pairs
        self.register_buffer("faithful", torch.ones(len(pairs), dtype=torch.bool))

    @torch.no_grad()
    def compare(self, observation: torch.Tensor, internal: torch.Tensor) -> None:
        """
        Note which columns do not show their internal variable as it is, but noisy, late, or hidden.

        :param observation: flattened, ``(n, m)``
        :param internal: internal variables at the same time, ``(n, d)``
        """
        for pair, (column, variable) in enumerate(self.shown):
            same = torch.isclose(observation[:, column], internal[:, variable], rtol=1e-4, atol=1e-5).all()
            self.faithful[pair] &= same
