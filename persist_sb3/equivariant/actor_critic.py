"""Equivariant policies of PPO, A2C, TRPO and MaskablePPO."""

from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy, MaskableMultiInputActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from persist_sb3.equivariant.symmetric import NO_SDE, Symmetric
from persist_sb3.models.equivariant import ChoiceHead, Group, InvariantHead, equivariant_body


class EquivariantExtractor(nn.Module):
    """
    The hidden layers of a policy and of its value function, in the place of SB3's ``MlpExtractor``.

    :param group: acts on the observation
    :param net_arch: widths of the hidden layers, for both or apart (``dict(pi=..., vf=...)``)
    :param activation_fn: between them
    """

    def __init__(
        self, group: Group, net_arch: list[int] | dict[str, list[int]], activation_fn: type[nn.Module]
    ) -> None:
        super().__init__()
        apart = net_arch if isinstance(net_arch, dict) else {"pi": net_arch, "vf": net_arch}
        self.policy_net = equivariant_body(group, apart.get("pi", []), activation_fn)
        self.value_net = equivariant_body(group, apart.get("vf", []), activation_fn)
        self.latent_dim_pi, self.latent_dim_vf = apart["pi"][-1], apart["vf"][-1]

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param features: the flat observation, ``(n, D)``
        :return: fields of the policy and of the value function
        """
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: torch.Tensor) -> torch.Tensor:
        """
        :param features: the flat observation, ``(n, D)``
        :return: fields of the policy
        """
        fields: torch.Tensor = self.policy_net(features)
        return fields

    def forward_critic(self, features: torch.Tensor) -> torch.Tensor:
        """
        :param features: the flat observation, ``(n, D)``
        :return: fields of the value function
        """
        fields: torch.Tensor = self.value_net(features)
        return fields


class Equivariant(Symmetric):
    """:class:`Symmetric` for SB3's actor-critic policies."""

    mlp_extractor: Any
    action_net: Any
    value_net: Any

    def _build(self: Any, lr_schedule: Schedule) -> None:
        if getattr(self, "use_sde", False):  # MaskablePPO knows none
            raise ValueError(NO_SDE)
        group = self._group_behind(self.features_extractor)
        super()._build(lr_schedule)  # type: ignore[misc]
        latent = self.mlp_extractor
        self.action_net = ChoiceHead(group, latent.latent_dim_pi // len(group), gain=0.01)
        self.value_net = InvariantHead(group, latent.latent_dim_vf // len(group))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _build_mlp_extractor(self: Any) -> None:
        self.mlp_extractor = EquivariantExtractor(self._group, self.net_arch, self.activation_fn).to(self.device)

    def _get_action_dist_from_latent(self: Any, latent_pi: torch.Tensor) -> Any:
        if isinstance(self.action_space, spaces.Discrete):
            return super()._get_action_dist_from_latent(latent_pi)  # type: ignore[misc]
        return self.action_dist.proba_distribution(self.action_net(latent_pi), self.action_net.even(self.log_std))


class EquivariantPolicy(Equivariant, ActorCriticPolicy):
    """:class:`Equivariant` for PPO and A2C on flat observations."""


class EquivariantMultiInputPolicy(Equivariant, MultiInputActorCriticPolicy):
    """:class:`Equivariant` for PPO and A2C on Dict observations."""


class EquivariantMaskablePolicy(Equivariant, MaskableActorCriticPolicy):
    """:class:`Equivariant` for MaskablePPO on flat observations."""


class EquivariantMaskableMultiInputPolicy(Equivariant, MaskableMultiInputActorCriticPolicy):
    """:class:`Equivariant` for MaskablePPO on Dict observations."""
