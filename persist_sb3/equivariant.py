"""
Policies that know the symmetries of their environment: for PPO, A2C and MaskablePPO.

What such a policy does in the mirror image of a state is the mirror image of what it does in the state, exactly and
from the first step on, and its value is the same. What it learns in one state it has learned in all images (van der
Pol et al., "MDP homomorphic networks: group symmetries in reinforcement learning", NeurIPS 2020).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy, MaskableMultiInputActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from persist_sb3.models.equivariant import ChoiceHead, Group, InvariantHead, equivariant_body
from persist_sb3.symmetry import Symmetry

__all__ = [
    "EquivariantMaskableMultiInputPolicy",
    "EquivariantMaskablePolicy",
    "EquivariantMultiInputPolicy",
    "EquivariantPolicy",
]


def symmetries_of(declared: str | Iterable[Symmetry], space: spaces.Space[Any]) -> Sequence[Symmetry]:
    """
    :param declared: symmetries, or the id of a registered environment that declares them
    :param space: of the observations that they are of
    :return: the symmetries
    :raises ValueError: if that environment declares none, or has other observations
    """
    if not isinstance(declared, str):
        return list(declared)
    env = gym.make(declared)
    found: Sequence[Symmetry] = env.get_wrapper_attr("symmetries") if env.has_wrapper_attr("symmetries") else ()
    env.close()
    if not found:
        raise ValueError(
            f"symmetries={declared!r}: the environment of this id declares no symmetries; give a list of "
            "persist_sb3.symmetry.Symmetry"
        )
    if spaces.flatdim(env.observation_space) != spaces.flatdim(space):
        raise ValueError(
            f"symmetries={declared!r}: the policy sees {space}, and the environment of this id shows "
            f"{env.observation_space}; a layer that adds to observations asks for a list of its own"
        )
    return found


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


class Equivariant:
    """
    Joins one of SB3's actor-critic policies with layers that commute with the environment's symmetries.

    :param symmetries: of the observation that the policy sees and of its actions: a list of
        :class:`~persist_sb3.symmetry.Symmetry`, or the id of an environment that declares them. With the identity they
        must make a group: products of symmetries are among them
    :param kwargs: of the policy; widths in ``net_arch`` must be multiples of the number of symmetries, with the
        identity
    :raises ValueError: if the symmetries are none of these observations and actions, or no group; or if a layer cannot
        be equivariant
    """

    mlp_extractor: Any
    action_net: Any
    value_net: Any

    def __init__(self, *args: Any, symmetries: str | Iterable[Symmetry], **kwargs: Any) -> None:
        self.symmetries = symmetries
        super().__init__(*args, **kwargs)

    def _build(self: Any, lr_schedule: Schedule) -> None:
        space, actions = self.observation_space, self.action_space
        if getattr(self, "use_sde", False):  # MaskablePPO knows none
            raise ValueError("use_sde=True: state-dependent exploration is not equivariant; use use_sde=False")
        if not isinstance(actions, spaces.Discrete | spaces.Box):
            raise ValueError(f"an equivariant policy is for Discrete and Box actions, and these are {actions}")
        if self.features_dim != spaces.flatdim(space):
            raise ValueError(
                f"{type(self.features_extractor).__name__} makes {self.features_dim} features of {space}, which has "
                f"{spaces.flatdim(space)} entries: symmetries are those of flat observations, so the features "
                "extractor may only flatten"
            )
        counted = isinstance(actions, spaces.Discrete)
        choices = int(actions.n) if isinstance(actions, spaces.Discrete) else int(np.prod(actions.shape))
        self._group = Group(symmetries_of(self.symmetries, space), self.features_dim, choices, counted)
        super()._build(lr_schedule)  # type: ignore[misc]
        fields_pi, fields_vf = (
            width // len(self._group) for width in (self.mlp_extractor.latent_dim_pi, self.mlp_extractor.latent_dim_vf)
        )
        self.action_net = ChoiceHead(self._group, fields_pi, gain=0.01)
        self.value_net = InvariantHead(self._group, fields_vf)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _build_mlp_extractor(self: Any) -> None:
        self.mlp_extractor = EquivariantExtractor(self._group, self.net_arch, self.activation_fn).to(self.device)

    def _get_action_dist_from_latent(self: Any, latent_pi: torch.Tensor) -> Any:
        if isinstance(self.action_space, spaces.Discrete):
            return super()._get_action_dist_from_latent(latent_pi)  # type: ignore[misc]
        return self.action_dist.proba_distribution(self.action_net(latent_pi), self.action_net.even(self.log_std))

    def _get_constructor_parameters(self: Any) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "symmetries": self.symmetries}  # type: ignore[misc]


class EquivariantPolicy(Equivariant, ActorCriticPolicy):
    """:class:`Equivariant` for PPO and A2C on flat observations."""


class EquivariantMultiInputPolicy(Equivariant, MultiInputActorCriticPolicy):
    """:class:`Equivariant` for PPO and A2C on Dict observations."""


class EquivariantMaskablePolicy(Equivariant, MaskableActorCriticPolicy):
    """:class:`Equivariant` for MaskablePPO on flat observations."""


class EquivariantMaskableMultiInputPolicy(Equivariant, MaskableMultiInputActorCriticPolicy):
    """:class:`Equivariant` for MaskablePPO on Dict observations."""
