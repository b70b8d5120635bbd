"""Equivariant actor and critics of SAC."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.sac.policies import Actor
from torch import nn

from persist_sb3.equivariant.gap import Gap
from persist_sb3.equivariant.symmetric import NO_SDE
from persist_sb3.models.equivariant import ChoiceHead, Group, InvariantHead, equivariant_body

#: The gain at which weights have the variance of ``torch.nn.Linear``'s.
LINEAR = 3.0**-0.5


class Choice:
    """
    Which of several proposals of an actor are acted by: what the least of the critics values most.

    :param count: proposals, ``k``
    """

    def __init__(self, count: int) -> None:
        self.count = count
        #: Whether the first one will do, since the critics know nothing yet.
        self.resting = False
        #: The critics.
        self.critic: EquivariantCritic | None = None

    @property
    def proposals(self) -> int:
        """How many there are now; 1 if the critics are not asked."""
        return 1 if self.resting or self.critic is None else self.count

    def best(self, obs: Any, proposed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param obs: a batch of observations, ``(n, ...)``
        :param proposed: actions, ``(n, k, A)``
        :return: row and column of the best of each, ``(n,)`` both
        """
        assert self.critic is not None
        best = self.critic.least(obs, proposed).argmax(dim=1)
        return torch.arange(len(best), device=best.device), best


class EquivariantActor(Actor):
    """
    SAC's actor, of layers that commute with the environment's symmetries.

    :param group: of the environment
    :param kwargs: of SB3's actor
    :raises ValueError: if ``use_sde`` is asked for, or a layer cannot be equivariant
    """

    def __init__(self, group: Group, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        #: Who chooses among what it proposes.
        self.choice = Choice(1)
        if self.use_sde:
            raise ValueError(NO_SDE)
        self.latent_pi = equivariant_body(group, self.net_arch, self.activation_fn)
        fields = self.net_arch[-1] // len(group)
        self.mu: nn.Module = ChoiceHead(group, fields, LINEAR)
        self.log_std: Any = ChoiceHead(group, fields, LINEAR, signed=False)

    def action_log_prob(self, obs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param obs: a batch of observations, ``(n, ...)``
        :return: a sample, ``(n, A)``, and its log density, ``(n,)``. Without gradients, as for what critics learn, it
            is the sample that the agent would act by
        """
        count = self.choice.proposals
        if count == 1 or torch.is_grad_enabled():
            return super().action_log_prob(obs)
        mean, log_std, others = self.get_action_dist_params(obs)
        given = {key: value.repeat_interleave(count, dim=0) for key, value in others.items()}
        action, log_prob = self.action_dist.log_prob_from_params(
            mean.repeat_interleave(count, dim=0), log_std.repeat_interleave(count, dim=0), **given
        )
        proposed = action.unflatten(0, (-1, count))
        best = self.choice.best(obs, proposed)
        return proposed[best], log_prob.unflatten(0, (-1, count))[best]

    def proposals(self, obs: Any, count: int, deterministic: bool) -> torch.Tensor:
        """
        :param obs: a batch of observations, ``(n, ...)``
        :param count: how many actions, ``k``
        :param deterministic: the same ones whenever it is asked; the first is then the middle of the Gaussian
        :return: samples of what the actor would do, ``(n, k, A)``
        """
        mean, log_std, _ = self.get_action_dist_params(obs)
        return torch.tanh(mean[:, None] + log_std.exp()[:, None] * noise_for(mean, count, deterministic))


def noise_for(mean: torch.Tensor, count: int, deterministic: bool) -> torch.Tensor:
    """
    :param mean: of the actions, ``(n, ..., A)``
    :param count: samples of each, ``k``
    :param deterministic: the same for all of the batch, and whenever it is asked, and none in the first
    :return: standard Gaussian noise, ``(n, k, A)``, or ``(1, k, A)``
    """
    size = mean.shape[-1]
    if not deterministic:
        return torch.randn(len(mean), count, size, device=mean.device)
    noise = torch.randn(count, size, generator=torch.Generator().manual_seed(0))
    noise[0] = 0.0
    return noise.to(mean.device)[None]


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
        #: By how much differences between actions are widened in learning; None for not at all.
        self.gap: Gap | None = None
        both, fields = group.of_both(), net_arch[-1] // len(group)
        for index in range(self.n_critics):
            critic = nn.Sequential(equivariant_body(both, net_arch, activation_fn), InvariantHead(both, fields))
            self.q_networks[index] = critic
            setattr(self, f"qf{index}", critic)

    def forward(self, obs: Any, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        :param obs: a batch of observations, ``(n, ...)``
        :param actions: in ``[-1, 1]``, ``(n, A)``. If they ask for a gradient, the critics' weights get none
        :return: each critic's values, ``(n, 1)``; where they are to be held against targets, with what is to be taken
            off those
        """
        with self.held(actions):
            values = super().forward(obs, actions)
        if self.gap is None or not (self.training and torch.is_grad_enabled()) or actions.requires_grad:
            return values
        shortfall = self.gap.shortfall(obs, actions)
        return tuple(value + shortfall for value in values)

    def least(self, obs: Any, actions: torch.Tensor) -> torch.Tensor:
        """
        :param obs: a batch of observations, ``(n, ...)``
        :param actions: several for each, in ``[-1, 1]``, ``(n, k, A)``
        :return: the least of the critics' values of each, ``(n, k)``
        """
        features = self.extract_features(obs, self.features_extractor)
        values = [self._several(critic, features, actions) for critic in self.q_networks]
        return torch.cat(values, dim=2).amin(dim=2)

    def _several(self, critic: Any, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """
        :param critic: one of them
        :param features: ``(n, D)``
        :param actions: ``(n, k, A)``
        :return: its values, ``(n, k, 1)``
        """
        (first, *others), head = critic
        weight, bias = first.spread()
        # The first layer is the widest, and what it makes of the state is the same for each action.
        of_state = nn.functional.linear(features, weight[:, : features.shape[1]], bias)
        hidden = of_state[:, None] + nn.functional.linear(actions, weight[:, features.shape[1] :])
        hidden = hidden.flatten(0, 1)
        for layer in others:
            hidden = layer(hidden)
        values: torch.Tensor = head(hidden).unflatten(0, actions.shape[:2])
        return values

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
