"""SB3's policies as pupils: how far one is from doing what it is shown, and which of its parameters choose actions."""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

#: A squashed Gaussian never quite reaches the limits of a Box, where demonstrations often are: they are taken as this
#: share of the way there.
EDGE = 0.97

#: Price of entropy at the start, in nats of likelihood for a nat of entropy.
PRICE = 0.1

#: How much faster than the policy the price of entropy learns, which has but one parameter.
HASTE = 10.0


NATS = "nats (negative log-likelihood)"


class Pupil(Protocol):
    """A policy that is taught."""

    #: Parameters that nothing but the choice of actions depends on.
    choosing: list[torch.nn.Parameter]
    #: What the algorithm itself changes them with.
    optimizer: torch.optim.Optimizer
    #: What the second result of :meth:`loss` is measured in.
    unit: str

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """
        :param learning_rate: of the policy
        :return: what is to be learned, as torch's optimisers take it
        """

    def encode(self, action: NDArray[Any]) -> NDArray[Any]:
        """
        :param action: in the units of the action space, ``(n, ...)``
        :return: as :meth:`loss` takes them, ``(n, ...)``
        """

    def loss(self, observation: Any, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param observation: as the policy sees it, ``(n, ...)``
        :param action: what was shown, ``(n, ...)``
        :return: what to minimise, and how far the policy is from what was shown, both ``()``
        """


class OnPolicyPupil:
    """
    PPO, A2C, TRPO, MaskablePPO: makes the shown actions likely.

    :param policy: theirs
    """

    unit = NATS

    def __init__(self, policy: ActorCriticPolicy | MaskableActorCriticPolicy) -> None:
        self._policy = policy
        self.optimizer = policy.optimizer
        value = {id(p) for part in (policy.mlp_extractor.value_net, policy.value_net) for p in part.parameters()}
        self.choosing = [p for p in policy.parameters() if p.requires_grad and id(p) not in value]

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """See :class:`Pupil`."""
        return [{"params": list(self._policy.parameters()), "lr": learning_rate}]

    def encode(self, action: NDArray[Any]) -> NDArray[Any]:
        """See :class:`Pupil`."""
        return action

    def loss(self, observation: Any, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Pupil`."""
        _, log_prob, _ = self._policy.evaluate_actions(observation, action)
        surprise = -log_prob.mean()
        return surprise, surprise


class SquashedPupil:
    """
    SAC, TQC: makes the shown actions as likely as the entropy lets it that the algorithm is going to ask for. Without
    that it would be all but deterministic, and the algorithm's first deed would be to make it random. The price of
    entropy is a Lagrange multiplier, learned as SAC learns its own (Haarnoja et al., "Soft actor-critic algorithms and
    applications", 2018).

    :param policy: theirs
    :param target_entropy: what the algorithm asks for, in nats
    """

    unit = NATS

    def __init__(self, policy: Any, target_entropy: float) -> None:
        self._policy = policy
        self._target = target_entropy
        self._log_price = torch.full((), np.log(PRICE), device=policy.device, requires_grad=True)
        self.choosing = list(policy.actor.parameters())
        self.optimizer = policy.actor.optimizer

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """See :class:`Pupil`."""
        price = {"params": [self._log_price], "lr": HASTE * learning_rate, "weight_decay": 0.0}
        return [{"params": self.choosing, "lr": learning_rate}, price]

    def encode(self, action: NDArray[Any]) -> NDArray[Any]:
        """See :class:`Pupil`."""
        encoded: NDArray[Any] = self._policy.scale_action(action).clip(-EDGE, EDGE)
        return encoded

    def loss(self, observation: Any, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Pupil`."""
        actor: Any = self._policy.actor
        mean, log_std, more = actor.get_action_dist_params(observation)
        _, log_prob = actor.action_dist.log_prob_from_params(mean, log_std, **more)
        surprise = -actor.action_dist.log_prob(action).mean()
        lacking = log_prob.mean() + self._target
        price = self._log_price.exp().detach()
        return surprise + price * lacking - self._log_price * lacking.detach(), surprise


class DeterministicPupil:
    """
    TD3, DDPG: comes as near to the shown actions as it can.

    :param policy: theirs
    """

    unit = "half-ranges of the action, squared"

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self.choosing = list(policy.actor.parameters())
        self.optimizer = policy.actor.optimizer

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """See :class:`Pupil`."""
        return [{"params": self.choosing, "lr": learning_rate}]

    def encode(self, action: NDArray[Any]) -> NDArray[Any]:
        """See :class:`Pupil`."""
        encoded: NDArray[Any] = self._policy.scale_action(action)
        return encoded

    def loss(self, observation: Any, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Pupil`."""
        distance = (self._policy.actor(observation) - action).square().sum(dim=1).mean()
        return distance, distance


def pupil_of(model: BaseAlgorithm) -> Pupil | None:
    """
    :param model: an algorithm
    :return: its policy as a pupil; None if it has none that could be taught
    """
    policy: Any = model.policy
    if isinstance(policy, ActorCriticPolicy | MaskableActorCriticPolicy):
        return None if isinstance(policy, RecurrentActorCriticPolicy) else OnPolicyPupil(policy)
    # By name, since what is below callbacks takes from SB3 what its algorithms have in common, and no algorithm.
    kinds = {kind.__name__ for kind in type(policy).__mro__}
    if kinds & {"SACPolicy", "TQCPolicy"} and not policy.actor.use_sde:
        algorithm: Any = model
        return SquashedPupil(policy, float(algorithm.target_entropy))
    return DeterministicPupil(policy) if "TD3Policy" in kinds else None
