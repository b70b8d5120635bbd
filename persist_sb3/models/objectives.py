"""What a viability critic learns from a transition: the least margin that is to come, or whether it stays inside."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from torch.nn import functional

from persist_sb3.models.viability import reachability_target

ObjectiveName = Literal["reachability", "classifier"]
Labels = Literal["constraints", "failures"]

#: Value whose odds of being inside are ``e`` to 1: a classifier's values are log-odds in this unit, so that about as
#: many of them lie between 0 and 1 as of scaled margins.
UNIT = 0.2


class Objective(Protocol):
    """A loss of the critic's values of the actions that were executed."""

    def __call__(
        self,
        predicted: torch.Tensor,
        margin: torch.Tensor,
        following: torch.Tensor,
        terminal: torch.Tensor,
        gamma: float,
    ) -> torch.Tensor:
        """
        :param predicted: every member's values, overall and by constraint, ``(e, n, 1 + m)``
        :param margin: scaled margins after the step, the least and by constraint, ``(n, 1 + m)``
        :param following: what the slowly following critics give the safest action of the state after it, ``(n, 1 + m)``
        :param terminal: the episode ended there by itself, bool, ``(n, 1)``
        :param gamma: discount factor, in ``[0, 1)``
        :return: the loss, summed over ``1 + m``
        """


class Reachability:
    """
    Squared distance to the discounted safety Bellman backup,
    :func:`~persist_sb3.models.viability.reachability_target`; what lies above it counts ``1 - expectile``, what lies
    below ``expectile`` times (each twice, so that 0.5 is the plain square). Below 0.5 the value is an expectile of what
    chance may bring instead of its mean (Newey & Powell, "Asymmetric least squares estimation and testing",
    Econometrica 1987; of values, Kostrikov et al., "Offline reinforcement learning with implicit Q-learning", ICLR
    2022): rare harm counts for more, and so does doubt about what is hard to foresee.

    :param expectile: in (0, 1)
    :raises ValueError: if it is out of its range
    """

    def __init__(self, expectile: float = 0.5) -> None:
        if not 0.0 < expectile < 1.0:
            raise ValueError(f"expectile={expectile} must be in (0, 1): 0.5 is the mean, less is more cautious")
        self.expectile = expectile

    def __call__(
        self,
        predicted: torch.Tensor,
        margin: torch.Tensor,
        following: torch.Tensor,
        terminal: torch.Tensor,
        gamma: float,
    ) -> torch.Tensor:
        """See :class:`Objective`."""
        error = predicted - reachability_target(margin, following, terminal, gamma)
        share = torch.where(error > 0.0, 1.0 - self.expectile, self.expectile)
        return (2.0 * share * error.square()).mean(dim=(0, 1)).sum()


class Classifier:
    """
    Tells the inside from the outside by focal loss, in the form for targets between 0 and 1,
    ``|y - p| ** focus * cross-entropy(p, y)`` (Li et al., "Generalized focal loss", NeurIPS 2020), which for labels is
    that of Lin et al. ("Focal loss for dense object detection", ICCV 2017). A value ``v`` of the critic means
    ``p = sigmoid(v / UNIT)``: 0 is even odds, and 0.2, the shield's default threshold, is 73 %. These are no margins,
    and where chance decides no probabilities either, since focal loss draws those toward one half.

    - ``labels="constraints"``: ``y`` is 0 where the step breaks a constraint, and else ``1 - gamma + gamma p'``, with
      ``p'`` of the safest action that follows, as the target network has it (1 where nothing follows). So what leads to
      the outside is outside, too; ``gamma=0`` judges single steps.
    - ``labels="failures"``: only that a constraint broke is told, not how near the others came. Such steps are
      negative, those that end at least ``far`` inside positive, and what lies between is left to the network, which is
      not told of it. ``gamma`` does not matter.

    :param labels: what the labels are made of: ``"constraints"`` or ``"failures"``
    :param focus: exponent that lets well classified transitions count for less; 0 is cross-entropy
    :param far: scaled margin from which a state counts as far from the boundary, with ``labels="failures"``, positive
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(self, labels: Labels = "constraints", focus: float = 2.0, far: float = 0.5) -> None:
        if labels not in ("constraints", "failures"):
            raise ValueError(f"labels={labels!r} must be 'constraints' or 'failures'")
        if not focus >= 0.0:
            raise ValueError(f"focus={focus} must be at least 0")
        if not far > 0.0:
            raise ValueError(f"far={far} must be positive: what is not broken is not yet far from the boundary")
        self.labels: Labels = labels
        self.focus = focus
        self.far = far

    def __call__(
        self,
        predicted: torch.Tensor,
        margin: torch.Tensor,
        following: torch.Tensor,
        terminal: torch.Tensor,
        gamma: float,
    ) -> torch.Tensor:
        """See :class:`Objective`."""
        logits = predicted / UNIT
        inside = margin >= 0.0
        if self.labels == "constraints":
            later = torch.where(terminal, 1.0, (1.0 - gamma) + gamma * torch.sigmoid(following / UNIT))
            label, counts = inside * later, torch.ones_like(margin)
        else:
            label = inside.to(margin.dtype)
            counts = (~inside | (margin >= self.far)).to(margin.dtype)
        label = label.expand_as(logits)
        entropy = functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
        loss = (label - torch.sigmoid(logits)).abs() ** self.focus * entropy * counts
        return (loss.mean(dim=0).sum(dim=0) / counts.sum(dim=0).clamp(min=1.0)).sum()


OBJECTIVES: dict[str, type[Reachability] | type[Classifier]] = {"reachability": Reachability, "classifier": Classifier}


def make_objective(name: str, parameters: Mapping[str, Any] | None) -> Objective:
    """
    :param name: ``"reachability"`` or ``"classifier"``
    :param parameters: of its class
    :return: the objective
    :raises ValueError: if there is no such objective, or one of its parameters is out of its range
    :raises TypeError: if it has no such parameter
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective={name!r} must be {' or '.join(map(repr, OBJECTIVES))}")
    try:
        return OBJECTIVES[name](**(parameters or {}))
    except TypeError as error:
        raise TypeError(f"objective_kwargs={parameters!r} of objective={name!r}: {error}") from error
