"""Equivariant policies of SAC."""

from typing import Any

import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import MultiInputPolicy as SACMultiInputPolicy
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from persist_sb3.equivariant.modes import ActorOfModes, CriticOfModes
from persist_sb3.equivariant.networks import EquivariantActor, EquivariantCritic
from persist_sb3.equivariant.symmetric import Symmetric


class EquivariantOffPolicy(Symmetric):
    """
    :class:`Symmetric` for SAC's policies.

    :param modes: 0 for SAC's own Gaussian; otherwise the policy is a mixture, of so many Gaussians and all of their
        images (see :class:`~persist_sb3.equivariant.modes.ActorOfModes`). A Gaussian has to mean one action: where the
        best are each other's images, to the left or to the right of what is in the way, an equivariant one means the
        middle
    :param best_of: actions that the actor proposes wherever the policy acts, in training and after; what the least of
        the critics values most of these is done. 1 is SAC. What the actor learns is what it would learn otherwise, and
        what it learns from is done by a better policy than itself: where actions are worth nearly the same, and what is
        best changes with every step, an actor hardly follows its critics. (An actor proposes and a critic chooses in
        Ghasemipour et al., "EMaQ: expected-max Q-learning operator for simple yet effective offline and online RL",
        ICML 2021.)
    :param kwargs: see :class:`Symmetric`
    :raises ValueError: if ``modes`` is negative, or ``best_of`` less than 1
    """

    def __init__(self, *args: Any, modes: int = 0, best_of: int = 1, **kwargs: Any) -> None:
        if modes < 0:
            raise ValueError(f"modes={modes} must be at least 0")
        if best_of < 1:
            raise ValueError(f"best_of={best_of} must be at least 1")
        self.modes = modes
        self.best_of = best_of
        #: Whether the critics choose among proposals now. Those that know nothing yet had better not.
        self.critics_choose = True
        super().__init__(*args, **kwargs)

    def _predict(self: Any, observation: Any, deterministic: bool = False) -> torch.Tensor:
        if self.best_of == 1 or not self.critics_choose:
            return super()._predict(observation, deterministic)  # type: ignore[misc]
        proposed: torch.Tensor = self.actor.proposals(observation, self.best_of, deterministic)
        best = self.critic.least(observation, proposed).argmax(dim=1)
        return proposed[torch.arange(len(best), device=best.device), best]

    def _with_group(self: Any, kwargs: dict[str, Any], extractor: nn.Module | None) -> dict[str, Any]:
        kwargs = self._update_features_extractor(kwargs, extractor)
        return {**kwargs, "group": self._group_behind(kwargs["features_extractor"])}

    def make_actor(self: Any, features_extractor: BaseFeaturesExtractor | None = None) -> EquivariantActor:
        kwargs = self._with_group(self.actor_kwargs, features_extractor)
        actor = ActorOfModes(modes=self.modes, **kwargs) if self.modes else EquivariantActor(**kwargs)
        return actor.to(self.device)

    def make_critic(self: Any, features_extractor: BaseFeaturesExtractor | None = None) -> EquivariantCritic:
        kind = CriticOfModes if self.modes else EquivariantCritic
        return kind(**self._with_group(self.critic_kwargs, features_extractor)).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "modes": self.modes, "best_of": self.best_of}


class EquivariantSACPolicy(EquivariantOffPolicy, SACPolicy):
    """:class:`EquivariantOffPolicy` for flat observations."""


class EquivariantSACMultiInputPolicy(EquivariantOffPolicy, SACMultiInputPolicy):
    """:class:`EquivariantOffPolicy` for Dict observations."""
