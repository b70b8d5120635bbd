"""What models of the observation have in common: they know where it shows internal variables."""

from collections.abc import Sequence

import torch

from persist_sb3.models.base import Model
from persist_sb3.models.spec import StateSpec


class ObservationModel(Model):
    """
    Base, beside another one, of the models of the observation. In imagination the columns that show an internal
    variable repeat what is imagined of that, unless :meth:`compare` found them to differ.
    """

    #: The column of the flattened observation and the index of the variable, two numbers each.
    shown: list[list[int]]
    #: Which of them have always been true, bool.
    faithful: torch.Tensor

    def _show(self, pairs: Sequence[Sequence[int]]) -> None:
        """
        :param pairs: see :attr:`shown`
        """
        self.shown = [list(pair) for pair in pairs]
        self.register_buffer("faithful", torch.ones(len(self.shown), dtype=torch.bool))

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


def check_shown(spec: StateSpec, shown: Sequence[Sequence[int]]) -> list[list[int]]:
    """
    :param spec: the environment's state and actions
    :param shown: see :attr:`ObservationModel.shown`
    :return: the same in plain numbers
    :raises ValueError: if there is no such column or variable
    """
    pairs = [[int(column), int(variable)] for column, variable in shown]
    for column, variable in pairs:
        if not (0 <= column < spec.observation_dim and 0 <= variable < spec.internal_dim):
            raise ValueError(
                f"shown={pairs}: there is no observation column {column} or no internal variable {variable}; there "
                f"are {spec.observation_dim} columns and {spec.internal_dim} variables"
            )
    return pairs
