"""Equivariant policies of SAC."""

import math
from typing import Any

import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.sac.policies import MultiInputPolicy as SACMultiInputPolicy
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from persist_sb3.equivariant.gap import Gap
from persist_sb3.equivariant.modes import ActorOfModes, CriticOfModes
from persist_sb3.equivariant.networks import Choice, EquivariantActor, EquivariantCritic
from persist_sb3.equivariant.symmetric import Symmetric


class EquivariantOffPolicy(Symmetric):
    """
    :class:`Symmetric` for SAC's policies.

    :param modes: 0 for SAC's own Gaussian; otherwise the policy is a mixture, of so many Gaussians and all of their
        images (see :class:`~persist_sb3.equivariant.modes.ActorOfModes`). A Gaussian has to mean one action: where the
        best are each other's images, to the left or to the right of what is in the way, an equivariant one means the
        middle
    :param best_of: actions that the actor proposes wherever the agent acts; what the least of the critics values most
        of these is done. 1 is SAC. Critics learn what that is worth, and the actor follows them as in SAC. (An actor
        proposes and a critic chooses, in acting and in targets, in Ghasemipour et al., "EMaQ: expected-max Q-learning
        operator for simple yet effective offline and online RL", ICML 2021.) For actions that are worth nearly the
        same, where which is best changes with every step: there an actor hardly follows its critics
    :param action_gap: how many times as large the critics make what an action is worth less than the actor's (see
        :class:`~persist_sb3.equivariant.gap.Gap`). 1 is SAC. Where steps are short, to turn back now or a step later is
        worth nearly the same, and the errors of critics decide which
    :param gap_limit: greatest difference that counts there, in units of the return: what is much worse is told apart
        anyhow. Default: none
    :param kwargs: see :class:`Symmetric`
    :raises ValueError: if ``modes`` is negative, ``best_of`` or ``action_gap`` less than 1, or ``gap_limit`` not
        positive
    """

    def __init__(
        self,
        *args: Any,
        modes: int = 0,
        best_of: int = 1,
        action_gap: float = 1.0,
        gap_limit: float = math.inf,
        **kwargs: Any,
    ) -> None:
        if modes < 0:
            raise ValueError(f"modes={modes} must be at least 0")
        self.modes = modes
        #: Who chooses among proposals.
        self.choice = Choice(1)
        self.best_of = best_of
        #: What differences between actions are in learning.
        self.gap = Gap(action_gap, gap_limit)
        super().__init__(*args, **kwargs)

    @property
    def best_of(self) -> int:
        """Proposals that the critics choose among. It may be changed at any time."""
        return self.choice.count

    @best_of.setter
    def best_of(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"best_of={count} must be at least 1")
        self.choice.count = count

    def _build(self: Any, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]
        self.choice.critic = self.critic
        self.actor.choice = self.choice
        if self.gap.factor > 1.0:
            self.gap.actor, self.gap.target = self.actor, self.critic_target
            self.critic.gap = self.gap

    def _predict(self: Any, observation: Any, deterministic: bool = False) -> torch.Tensor:
        count = self.choice.proposals
        if count == 1:
            return super()._predict(observation, deterministic)  # type: ignore[misc]
        proposed: torch.Tensor = self.actor.proposals(observation, count, deterministic)
        return proposed[self.choice.best(observation, proposed)]

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
        own = {"modes": self.modes, "best_of": self.best_of}
        gap = {"action_gap": self.gap.factor, "gap_limit": self.gap.limit}
        return {**super()._get_constructor_parameters(), **own, **gap}


class EquivariantSACPolicy(EquivariantOffPolicy, SACPolicy):
    """:class:`EquivariantOffPolicy` for flat observations."""


class EquivariantSACMultiInputPolicy(EquivariantOffPolicy, SACMultiInputPolicy):
    """:class:`EquivariantOffPolicy` for Dict observations."""
