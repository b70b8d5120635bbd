"""
Policies that care how badly things may go: QR-DQN and TQC that maximise the conditional value at risk of the return.

Both algorithms learn quantiles of the return, and use their mean alone. These policies use the mean of the lowest share
``risk_alpha`` instead, and everything else of the algorithm stays as it is. With ``risk_alpha=1`` nothing changes.
"""

from typing import Any

import numpy as np
import torch
from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
from sb3_contrib.tqc.policies import Critic, TQCPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs

__all__ = [
    "RiskQRDQNCnnPolicy",
    "RiskQRDQNMultiInputPolicy",
    "RiskQRDQNPolicy",
    "RiskTQCCnnPolicy",
    "RiskTQCMultiInputPolicy",
    "RiskTQCPolicy",
    "cvar_of_quantiles",
    "cvar_weights",
]


def check_alpha(risk_alpha: float) -> float:
    """
    :param risk_alpha: share of the return's distribution
    :return: the same
    :raises ValueError: if it is not in ``(0, 1]``
    """
    if not 0.0 < risk_alpha <= 1.0:
        raise ValueError(
            f"risk_alpha={risk_alpha} must be in (0, 1]: the share of the worst returns that counts; 1 counts them all"
        )
    return float(risk_alpha)


def cvar_weights(count: int, alpha: float) -> torch.Tensor:
    """
    What each of ``count`` quantiles, in ascending order, counts for in CVaR: quantile ``i`` stands for the shares from
    ``i / count`` to ``(i + 1) / count`` of the distribution, and counts as far as these lie below ``alpha``.

    :param count: number of quantiles
    :param alpha: in ``(0, 1]``
    :return: ``(count,)``; their sum is 1
    :raises ValueError: if ``alpha`` is out of its range
    """
    edges = torch.arange(count, dtype=torch.float64)
    return (((check_alpha(alpha) * count - edges).clamp(0.0, 1.0)) / (alpha * count)).float()


def cvar_of_quantiles(quantiles: torch.Tensor, alpha: float, dim: int = -1) -> torch.Tensor:
    """
    The conditional value at risk: the mean of the lowest share ``alpha`` of a distribution (Rockafellar & Uryasev,
    "Optimization of conditional value-at-risk", Journal of Risk, 2000). Of a distribution that is known by equally
    likely quantiles it is a weighted mean (Dabney et al., "Implicit quantile networks for distributional reinforcement
    learning", ICML 2018, section 3.2).

    :param quantiles: in any order along ``dim``, ``(..., q, ...)``
    :param alpha: in ``(0, 1]``; 1 is the mean
    :param dim: of the quantiles
    :return: ``(..., ...)``, without ``dim``
    :raises ValueError: if ``alpha`` is out of its range
    """
    ordered = quantiles.sort(dim=dim).values.movedim(dim, -1)
    return ordered @ cvar_weights(ordered.shape[-1], alpha).to(ordered)


class RiskQuantileNetwork(QuantileNetwork):
    """
    A quantile network that takes the action of the greatest CVaR.

    :param risk_alpha: share of the worst returns that counts, in ``(0, 1]``
    :param kwargs: of ``sb3_contrib.qrdqn.policies.QuantileNetwork``
    """

    def __init__(self, *args: Any, risk_alpha: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.risk_alpha = risk_alpha

    def values(self, quantiles: torch.Tensor) -> torch.Tensor:
        """
        :param quantiles: ``(n, q, k)``
        :return: CVaR of each action, ``(n, k)``
        """
        return cvar_of_quantiles(quantiles, self.risk_alpha, dim=1)

    def _predict(self, observation: PyTorchObs, deterministic: bool = True) -> torch.Tensor:
        return self.values(self(observation)).argmax(dim=1).reshape(-1)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "risk_alpha": self.risk_alpha}


class RiskTargetNetwork(RiskQuantileNetwork):
    """
    The target network. QR-DQN bootstraps from the action whose quantiles have the greatest mean; this one shows it
    quantiles of the action of the greatest CVaR alone, and negative infinity for the others, so that the target is the
    return of the policy that is followed.
    """

    def forward(self, obs: PyTorchObs) -> torch.Tensor:
        quantiles = super().forward(obs)
        best = self.values(quantiles).argmax(dim=1)[:, None, None]
        others = torch.arange(quantiles.shape[2], device=quantiles.device) != best
        return quantiles.masked_fill(others, -np.inf)


class RiskQRDQNPolicy(QRDQNPolicy):
    """
    QR-DQN's policy, by CVaR: it takes the action whose return has the greatest mean of its lowest share ``risk_alpha``,
    and learns the return of doing so, which is how Dabney et al. (ICML 2018, section 3.2) make distributional agents
    averse to risk. It is the greedy policy for the rest of the episode seen from each state anew, and not in general
    the one of the greatest CVaR of the whole return (Lim & Malik, "Distributional reinforcement learning for
    risk-sensitive policies", NeurIPS 2022).

    In rl-zoo3: ``policy: persist_sb3.risk.RiskQRDQNPolicy`` and ``policy_kwargs: {risk_alpha: 0.25}``.

    :param risk_alpha: share of the worst returns that counts, in ``(0, 1]``; 1 is QR-DQN as it is. Of ``q`` quantiles
        the lowest ``risk_alpha * q`` count: keep that above 1
    :param kwargs: of ``sb3_contrib.qrdqn.policies.QRDQNPolicy``
    :raises ValueError: if ``risk_alpha`` is out of its range
    """

    def __init__(self, *args: Any, risk_alpha: float = 0.25, **kwargs: Any) -> None:
        self.risk_alpha = check_alpha(risk_alpha)
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.quantile_net_target = self._make(RiskTargetNetwork)
        self.quantile_net_target.load_state_dict(self.quantile_net.state_dict())
        self.quantile_net_target.set_training_mode(False)

    def make_quantile_net(self) -> RiskQuantileNetwork:
        return self._make(RiskQuantileNetwork)

    def _make(self, kind: type[RiskQuantileNetwork]) -> RiskQuantileNetwork:
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return kind(risk_alpha=self.risk_alpha, **arguments).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "risk_alpha": self.risk_alpha}


class RiskQRDQNCnnPolicy(RiskQRDQNPolicy):
    """:class:`RiskQRDQNPolicy` for images."""

    def __init__(
        self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN, **kwargs: Any
    ) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class RiskQRDQNMultiInputPolicy(RiskQRDQNPolicy):
    """:class:`RiskQRDQNPolicy` for Dict observations."""

    def __init__(
        self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor, **kwargs: Any
    ) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class RiskCritic(Critic):
    """
    TQC's critic. To the actor, through whose actions gradients flow, it shows quantiles whose mean is the CVaR of all
    of them together; where the critic itself learns, and as a target, it shows them as they are.

    :param risk_alpha: share of the worst returns that counts, in ``(0, 1]``
    :param kwargs: of ``sb3_contrib.tqc.policies.Critic``
    """

    def __init__(self, *args: Any, risk_alpha: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.risk_alpha = risk_alpha

    def forward(self, obs: PyTorchObs, action: torch.Tensor) -> torch.Tensor:
        quantiles = super().forward(obs, action)
        if not action.requires_grad or self.risk_alpha == 1.0:
            return quantiles
        pooled = quantiles.flatten(1).sort(dim=1).values
        count = pooled.shape[1]
        return (pooled * (count * cvar_weights(count, self.risk_alpha).to(pooled))).view_as(quantiles)


class RiskTQCPolicy(TQCPolicy):
    """
    TQC's policy, whose actor climbs the CVaR of the return instead of its mean: the mean of the lowest share
    ``risk_alpha`` of the quantiles of all critics together. The critics learn the return of that actor as before, with
    TQC's truncation of the greatest quantiles (as in Ma et al., "DSAC: distributional soft actor-critic for
    risk-sensitive reinforcement learning", 2020).

    In rl-zoo3: ``policy: persist_sb3.risk.RiskTQCPolicy`` and ``policy_kwargs: {risk_alpha: 0.25}``.

    :param risk_alpha: share of the worst returns that counts, in ``(0, 1]``; 1 is TQC as it is
    :param kwargs: of ``sb3_contrib.tqc.policies.TQCPolicy``
    :raises ValueError: if ``risk_alpha`` is out of its range
    """

    def __init__(self, *args: Any, risk_alpha: float = 0.25, **kwargs: Any) -> None:
        self.risk_alpha = check_alpha(risk_alpha)
        super().__init__(*args, **kwargs)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> RiskCritic:
        arguments = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return RiskCritic(risk_alpha=self.risk_alpha, **arguments).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "risk_alpha": self.risk_alpha}


class RiskTQCCnnPolicy(RiskTQCPolicy):
    """:class:`RiskTQCPolicy` for images."""

    def __init__(
        self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN, **kwargs: Any
    ) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class RiskTQCMultiInputPolicy(RiskTQCPolicy):
    """:class:`RiskTQCPolicy` for Dict observations."""

    def __init__(
        self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor, **kwargs: Any
    ) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)
