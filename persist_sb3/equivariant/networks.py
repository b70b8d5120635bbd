"""Equivariant actor and critics of SAC."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.sac.policies import Actor
from torch import nn

from persist_sb3.equivariant.symmetric import NO_SDE
from persist_sb3.models.equivariant import ChoiceHead, Group, InvariantHead, equivariant_body

#: The gain at which weights have the variance of ``torch.nn.Linear``'s.
LINEAR = 3.0**-0.5


class EquivariantActor(Actor):
    """
    SAC's actor, of layers that commute with the environment's symmetries.

    :param group: of the environment
    :param kwargs: of SB3's actor
    :raises ValueError: if ``use_sde`` is asked for, or a layer cannot be equivariant
    """

    def __init__(self, group: Group, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.use_sde:
            raise ValueError(NO_SDE)
        self.latent_pi = equivariant_body(group, self.net_arch, self.activation_fn)
        fields = self.net_arch[-1] // len(group)
        self.mu: nn.Module = ChoiceHead(group, fields, LINEAR)
        self.log_std: Any = ChoiceHead(group, fields, LINEAR, signed=False)


class EquivariantCritic(ContinuousCritic):
    """
    SAC's critics, of layers that do not notice the environment's symmetries.

    :param group: of the environment
    :param net_arch: widths of the hidden layers
    :param activation_fn: between them
    :param kwargs: of SB3's critic
    """

    def __init__(self, group: Group, net_arch: list[int], activation_fn: type[nn.Module], **kwargs: Any) -> None:
        super().__init__(net_arch=net_arch, activation_fn=activation_fn, **kwargs)
        both, fields = group.of_both(), net_arch[-1] // len(group)
        for index in range(self.n_critics):
            critic = nn.Sequential(equivariant_body(both, net_arch, activation_fn), InvariantHead(both, fields))
            self.q_networks[index] = critic
            setattr(self, f"qf{index}", critic)

    def forward(self, obs: Any, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        :param obs: a batch of observations, ``(n, ...)``
        :param actions: in ``[-1, 1]``, ``(n, A)``. If they ask for a gradient, the critics' weights get none
        :return: each critic's values, ``(n, 1)``
        """
        with self.held(actions):
            return super().forward(obs, actions)

    @contextmanager
    def held(self, actions: torch.Tensor) -> Iterator[None]:
        """
        Within it the critics' weights get no gradient where actions ask for one: what they would learn from an actor,
        SAC throws away.

        :param actions: to be valued
        """
        weights = [parameter for parameter in self.parameters() if parameter.requires_grad and actions.requires_grad]
        for weight in weights:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in weights:
                weight.requires_grad_()
