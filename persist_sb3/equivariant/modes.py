"""Actor and critics of SAC for policies that see several good actions at once."""

import math
from typing import Any

import torch
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN

from persist_sb3.equivariant.networks import LINEAR, EquivariantActor, EquivariantCritic, noise_for
from persist_sb3.models.equivariant import Group, GroupConvolution

#: How far from 0 modes begin, before squashing: the first along the first component, the others anywhere. And how wide.
MEAN, DEVIATION = 1.5, 0.6
#: Least of what a logarithm is taken of.
FLOOR = 1e-6


class SquashedMixture:
    """
    A mixture of Gaussians, squashed by ``tanh`` into ``[-1, 1]``, with the interface of SB3's
    ``SquashedDiagGaussianDistribution`` (SAC's first policies were such mixtures: Haarnoja et al., "Soft actor-critic",
    ICML 2018, version 1).

    With gradients :meth:`log_prob_from_params` does not draw which mode is meant: it returns a sample of each, and how
    likely it is. So a mode's weight learns from what all of them are worth, and the choice between them needs no
    gradient that is estimated from single choices.
    """

    def proba_distribution(self, mean: torch.Tensor, log_std: torch.Tensor, logits: torch.Tensor) -> "SquashedMixture":
        """
        :param mean: of each mode, before squashing, ``(n, k, A)``
        :param log_std: logarithm of its deviation, ``(n, k, A)``
        :param logits: of its weight, ``(n, k)``
        :return: itself
        """
        self.mean, self.log_std = mean, log_std
        self.log_weight = torch.log_softmax(logits, dim=1)
        return self

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """
        :param action: in ``(-1, 1)``, ``(n, A)``
        :return: log density, ``(n,)``
        """
        inside = 1.0 - torch.finfo(action.dtype).eps
        return self._log_density(torch.atanh(action.clamp(-inside, inside))[:, None])[:, 0]

    def sample(self) -> torch.Tensor:
        """
        :return: actions, ``(n, A)``
        """
        return torch.tanh(self._drawn())

    def mode(self) -> torch.Tensor:
        """
        :return: the middle of the likeliest mode, ``(n, A)``
        """
        return torch.tanh(_rows(self.mean, self.log_weight.argmax(dim=1)))

    def actions_from_params(
        self, mean: torch.Tensor, log_std: torch.Tensor, logits: torch.Tensor, deterministic: bool = False
    ) -> torch.Tensor:
        """
        :param mean: see :meth:`proba_distribution`
        :param log_std: see :meth:`proba_distribution`
        :param logits: see :meth:`proba_distribution`
        :param deterministic: :meth:`mode` instead of :meth:`sample`
        :return: actions, ``(n, A)``
        """
        self.proba_distribution(mean, log_std, logits)
        return self.mode() if deterministic else self.sample()

    def log_prob_from_params(
        self, mean: torch.Tensor, log_std: torch.Tensor, logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param mean: see :meth:`proba_distribution`
        :param log_std: see :meth:`proba_distribution`
        :param logits: see :meth:`proba_distribution`
        :return: a sample, ``(n, A)``, and its log density, ``(n,)``; with gradients a sample of each mode and its
            weight, ``(n, k * (A + 1))``, as :class:`CriticOfModes` takes them, and the weighted mean of their log
            densities, ``(n,)``
        """
        self.proba_distribution(mean, log_std, logits)
        if not torch.is_grad_enabled():
            drawn = self._drawn()
            return torch.tanh(drawn), self._log_density(drawn[:, None])[:, 0]
        drawn = mean + log_std.exp() * torch.randn_like(mean)
        weight = self.log_weight.exp()
        choices = torch.cat([torch.tanh(drawn), weight[..., None]], dim=2)
        return choices.flatten(1), (weight * self._log_density(drawn)).sum(dim=1)

    def _drawn(self) -> torch.Tensor:
        """
        :return: samples before squashing, ``(n, A)``
        """
        which = torch.multinomial(self.log_weight.exp(), 1)[:, 0]
        mean = _rows(self.mean, which)
        return mean + _rows(self.log_std, which).exp() * torch.randn_like(mean)

    def _log_density(self, drawn: torch.Tensor) -> torch.Tensor:
        """
        :param drawn: before squashing, several in each state, ``(n, m, A)``
        :return: log density of what squashing makes of them, ``(n, m)``
        """
        away = (drawn[:, :, None] - self.mean[:, None]) * (-self.log_std).exp()[:, None]
        by_mode = -(0.5 * away.square() + self.log_std[:, None] + 0.5 * math.log(2.0 * math.pi)).sum(dim=3)
        slope = torch.log(1.0 - torch.tanh(drawn).square() + FLOOR).sum(dim=2)
        return torch.logsumexp(by_mode + self.log_weight[:, None], dim=2) - slope


class ActorOfModes(EquivariantActor):
    """
    :class:`~persist_sb3.equivariant.networks.EquivariantActor` with a mixture in the place of one Gaussian. The modes
    are images of each other: what one of them is in an image of the state, another is in the state.

    :param group: of the environment
    :param modes: how many that are no images of each other; each has as many images as the group has elements
    :param kwargs: of SB3's actor
    """

    columns: torch.Tensor
    signs: torch.Tensor

    def __init__(self, group: Group, modes: int, **kwargs: Any) -> None:
        super().__init__(group, **kwargs)
        order, (_, size) = len(group), group.choice_columns.shape
        fields = self.net_arch[-1] // order
        self._shape = size, modes, order
        self.action_dist: Any = SquashedMixture()
        # Of each mode in the frame that its image has.
        self.mu = GroupConvolution(group, fields, size * modes, LINEAR)
        self.log_std = GroupConvolution(group, fields, size * modes, LINEAR)
        self.logits = GroupConvolution(group, fields, modes, LINEAR)
        begin = torch.randn(size, modes)
        begin[:, 0] = torch.eye(size)[0]
        with torch.no_grad():
            self.mu.bias.copy_((MEAN * begin / begin.norm(dim=0)).flatten())
            self.log_std.bias.fill_(math.log(DEVIATION))
        self.register_buffer("columns", torch.as_tensor(group.choice_columns), persistent=False)
        signs = torch.as_tensor(group.choice_signs, dtype=torch.float32)
        self.register_buffer("signs", signs, persistent=False)

    def get_action_dist_params(self, obs: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """
        :param obs: a batch of observations, ``(n, ...)``
        :return: what :class:`SquashedMixture` is made of
        """
        latent = self.latent_pi(self.extract_features(obs, self.features_extractor))
        mean = (self._turned(self.mu(latent)) * self.signs).flatten(1, 2)
        log_std = self._turned(self.log_std(latent)).flatten(1, 2).clamp(LOG_STD_MIN, LOG_STD_MAX)
        return mean, log_std, {"logits": self.logits(latent)}

    def proposals(self, obs: Any, count: int, deterministic: bool) -> torch.Tensor:
        """
        :param obs: a batch of observations, ``(n, ...)``
        :param count: how many actions, ``k``
        :param deterministic: the same ones whenever it is asked, of one mode after the other, the likeliest first
        :return: samples of what the actor would do, ``(n, k, A)``
        """
        mean, log_std, others = self.get_action_dist_params(obs)
        weight = torch.softmax(others["logits"], dim=1)
        if deterministic:
            order = weight.argsort(dim=1, descending=True, stable=True)
            which = order[:, torch.arange(count, device=order.device) % order.shape[1]]
        else:
            which = torch.multinomial(weight, count, replacement=True)
        rows = torch.arange(len(mean), device=mean.device)[:, None]
        return torch.tanh(mean[rows, which] + log_std[rows, which].exp() * noise_for(mean, count, deterministic))

    def _turned(self, fields: torch.Tensor) -> torch.Tensor:
        """
        :param fields: ``(n, A * modes * g)``
        :return: the entries of the actions, each mode in its own image, ``(n, modes, g, A)``
        """
        entries = fields.unflatten(1, self._shape).movedim(1, 3)
        return entries.gather(3, self.columns.expand(entries.shape))


class CriticOfModes(EquivariantCritic):
    """:class:`~persist_sb3.equivariant.networks.EquivariantCritic` for :class:`ActorOfModes`."""

    def forward(self, obs: Any, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        :param obs: a batch of observations, ``(n, ...)``
        :param actions: in ``[-1, 1]``, ``(n, A)``; or several and their weights, as an actor with gradients returns
            them, ``(n, k * (A + 1))``. If they ask for a gradient, the critics' weights get none
        :return: each critic's values, ``(n, 1)``; of several actions the weighted mean of the least over the critics,
            the same of each
        """
        size = get_action_dim(self.action_space)
        if actions.shape[1] == size:
            return super().forward(obs, actions)
        choices = actions.unflatten(1, (-1, size + 1))
        tried, weight = choices[..., :size], choices[..., size:]
        with self.held(actions):
            values = self.least(obs, tried)
        value = (weight[..., 0] * values).sum(dim=1, keepdim=True)
        return (value,) * self.n_critics


def _rows(modes: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """
    :param modes: ``(n, k, A)``
    :param which: one in each row, ``(n,)``
    :return: ``(n, A)``
    """
    return modes[torch.arange(len(modes), device=modes.device), which]
