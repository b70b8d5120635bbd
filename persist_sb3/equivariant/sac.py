"""Equivariant policies of SAC."""

from typing import Any

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
    :param kwargs: see :class:`Symmetric`
    :raises ValueError: if ``modes`` is negative
    """

    def __init__(self, *args: Any, modes: int = 0, **kwargs: Any) -> None:
        if modes < 0:
            raise ValueError(f"modes={modes} must be at least 0")
        self.modes = modes
        super().__init__(*args, **kwargs)

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
        return {**super()._get_constructor_parameters(), "modes": self.modes}


class EquivariantSACPolicy(EquivariantOffPolicy, SACPolicy):
    """:class:`EquivariantOffPolicy` for flat observations."""


class EquivariantSACMultiInputPolicy(EquivariantOffPolicy, SACMultiInputPolicy):
    """:class:`EquivariantOffPolicy` for Dict observations."""
