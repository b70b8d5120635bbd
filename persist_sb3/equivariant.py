"""
Policies that know the symmetries of their environment: for PPO, A2C, TRPO, MaskablePPO and SAC.

What such a policy does in the mirror image of a state is the mirror image of what it does in the state, exactly and
from the first step on, and its value is the same. What it learns in one state it has learned in all images (van der
Pol et al., "MDP homomorphic networks: group symmetries in reinforcement learning", NeurIPS 2020).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy, MaskableMultiInputActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy, ContinuousCritic, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.sac.policies import Actor, SACPolicy
from stable_baselines3.sac.policies import MultiInputPolicy as SACMultiInputPolicy
from torch import nn

from persist_sb3.models.equivariant import ChoiceHead, Group, InvariantHead, equivariant_body
from persist_sb3.symmetry import Symmetry

__all__ = [
    "EquivariantMaskableMultiInputPolicy",
    "EquivariantMaskablePolicy",
    "EquivariantMultiInputPolicy",
    "EquivariantPolicy",
    "EquivariantSACMultiInputPolicy",
    "EquivariantSACPolicy",
]

#: The gain at which weights have the variance of ``torch.nn.Linear``'s.
LINEAR = 3.0**-0.5
NO_SDE = "use_sde=True: state-dependent exploration is not equivariant; use use_sde=False"


#: Keys of a Dict observation under which layers tell what they know about internal variables, and of them alone.
TOLD = ("belief", "setpoint")

#: Symmetries themselves, or ids of registered environments that declare them.
Declared = str | Iterable[str] | Iterable[Symmetry]


def symmetries_of(declared: Declared, space: spaces.Space[Any]) -> Sequence[Symmetry]:
    """
    :param declared: symmetries, or the id of a registered environment that declares them; of several ids, the first
        whose environment has these observations
    :param space: of the observations that they are of
    :return: the symmetries
    :raises ValueError: if that environment declares none, or has other observations
    """
    given = [declared] if isinstance(declared, str) else list(declared)
    ids = [each for each in given if isinstance(each, str)]
    if len(ids) < len(given):
        return [each for each in given if isinstance(each, Symmetry)]
    shown = []
    for env_id in ids:
        env = gym.make(env_id)
        found: Sequence[Symmetry] = env.get_wrapper_attr("symmetries") if env.has_wrapper_attr("symmetries") else ()
        env.close()
        if not found:
            raise ValueError(
                f"symmetries={declared!r}: {env_id} declares no symmetries; give a list of "
                "persist_sb3.symmetry.Symmetry"
            )
        if spaces.flatdim(env.observation_space) == spaces.flatdim(space):
            return found
        told = _of_longer(found, env.observation_space, space)
        if told:
            return told
        shown.append(f"{env_id} shows {env.observation_space}")
    raise ValueError(
        f"symmetries={declared!r}: the policy sees {space}, and {', '.join(shown)}; a layer that adds to observations "
        "asks for a list of its own"
    )


def _of_longer(
    symmetries: Sequence[Symmetry], inner: spaces.Space[Any], outer: spaces.Space[Any]
) -> Sequence[Symmetry]:
    """
    :param symmetries: of an environment
    :param inner: its observations
    :param outer: those behind its layers
    :return: the symmetries of these, if all they add is what is told about internal variables (:data:`TOLD`), and if no
        symmetry changes those; otherwise none
    """
    if not (isinstance(inner, spaces.Dict) and isinstance(outer, spaces.Dict)) or any(
        map(_moves_internals, symmetries)
    ):
        return ()
    kept = {key: part.shape for key, part in outer.items() if key not in TOLD}
    if kept != {key: part.shape for key, part in inner.items()}:
        return ()
    sizes = {key: spaces.flatdim(part) for key, part in outer.items()}
    ends = dict(zip(sizes, np.cumsum(list(sizes.values())), strict=True))
    # Where each entry of the shorter observation is in the longer one.
    place = np.concatenate([np.arange(ends[key] - sizes[key], ends[key]) for key in inner])
    longer = []
    for symmetry in symmetries:
        columns = np.arange(sum(sizes.values()))
        columns[place] = place if symmetry.columns is None else place[np.asarray(symmetry.columns)]
        longer.append(replace(symmetry, columns=columns, flip=place[np.asarray(symmetry.flip, dtype=np.intp)]))
    return longer


def _moves_internals(symmetry: Symmetry) -> bool:
    columns = symmetry.internal_columns
    return len(symmetry.internal_flip) > 0 or (columns is not None and list(columns) != list(range(len(columns))))


def group_of(declared: Declared, space: spaces.Space[Any], actions: spaces.Space[Any], extractor: nn.Module) -> Group:
    """
    :param declared: symmetries, or the id of a registered environment that declares them
    :param space: of the observations
    :param actions: their space
    :param extractor: SB3's features extractor
    :return: their group
    :raises ValueError: if the symmetries are none of these observations and actions, or no group
    """
    if not isinstance(actions, spaces.Discrete | spaces.Box):
        raise ValueError(f"an equivariant policy is for Discrete and Box actions, and these are {actions}")
    size = spaces.flatdim(space)
    features = getattr(extractor, "features_dim", size)
    if features != size:
        raise ValueError(
            f"{type(extractor).__name__} makes {features} features of {space}, which has {size} entries: symmetries "
            "are those of flat observations, so the features extractor may only flatten"
        )
    choices = int(actions.n) if isinstance(actions, spaces.Discrete) else int(np.prod(actions.shape))
    return Group(symmetries_of(declared, space), size, choices, isinstance(actions, spaces.Discrete))


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


class Symmetric:
    """
    What SB3's policies need so that their networks can commute with the environment's symmetries.

    :param symmetries: of the observation that the policy sees and of its actions: a list of
        :class:`~persist_sb3.symmetry.Symmetry`, or the id of an environment that declares them (of several ids, the
        first that has these observations). With the identity they must make a group: products of symmetries are among
        them
    :param kwargs: of the policy; widths in ``net_arch`` must be multiples of the number of symmetries, with the
        identity
    :raises ValueError: if the symmetries are none of these observations and actions, or no group; or if a layer cannot
        be equivariant
    """

    def __init__(self, *args: Any, symmetries: Declared, **kwargs: Any) -> None:
        self.symmetries = symmetries
        self._group: Group | None = None
        super().__init__(*args, **kwargs)

    def _group_behind(self: Any, extractor: nn.Module) -> Group:
        """
        :param extractor: features extractor of a network
        :return: the group that acts on its features and on the actions, found once
        """
        if self._group is None:
            self._group = group_of(self.symmetries, self.observation_space, self.action_space, extractor)
        group: Group = self._group
        return group

    def _get_constructor_parameters(self: Any) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "symmetries": self.symmetries}  # type: ignore[misc]


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
        if not actions.requires_grad:
            return super().forward(obs, actions)
        # The actor climbs: what the critics' own weights would learn from that, SAC throws away.
        weights = [parameter for parameter in self.parameters() if parameter.requires_grad]
        for weight in weights:
            weight.requires_grad_(False)
        values = super().forward(obs, actions)
        for weight in weights:
            weight.requires_grad_()
        return values


class EquivariantOffPolicy(Symmetric):
    """:class:`Symmetric` for SAC's policies."""

    def _with_group(self: Any, kwargs: dict[str, Any], extractor: nn.Module | None) -> dict[str, Any]:
        kwargs = self._update_features_extractor(kwargs, extractor)
        return {**kwargs, "group": self._group_behind(kwargs["features_extractor"])}

    def make_actor(self: Any, features_extractor: BaseFeaturesExtractor | None = None) -> EquivariantActor:
        return EquivariantActor(**self._with_group(self.actor_kwargs, features_extractor)).to(self.device)

    def make_critic(self: Any, features_extractor: BaseFeaturesExtractor | None = None) -> EquivariantCritic:
        return EquivariantCritic(**self._with_group(self.critic_kwargs, features_extractor)).to(self.device)


class EquivariantSACPolicy(EquivariantOffPolicy, SACPolicy):
    """:class:`EquivariantOffPolicy` for flat observations."""


class EquivariantSACMultiInputPolicy(EquivariantOffPolicy, SACMultiInputPolicy):
    """:class:`EquivariantOffPolicy` for Dict observations."""
