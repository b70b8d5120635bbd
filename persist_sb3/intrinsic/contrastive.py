"""Empowerment by contrast: which of many sequences of actions led here?"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from persist_sb3.intrinsic.outcomes import Outcomes, foresee
from persist_sb3.models.imagination import Dynamics
from persist_sb3.models.networks import EnsembleMLP, Standardizer
from persist_sb3.models.spec import Floats


class SequenceCritic(nn.Module):
    """
    ``f(s, a_1:k, s'_k)``, the product of a code of the states and a code of the sequence, so that every state is
    compared with every sequence in one matrix product.

    :param inputs: length of the state, ``D``
    :param columns: which of them are the outcome
    :param sequence: length of a flattened sequence, ``k A``
    :param net_arch: sizes of the hidden layers of either code
    :param features: length of the codes
    """

    def __init__(
        self, inputs: int, columns: Sequence[int], sequence: int, net_arch: Sequence[int], features: int
    ) -> None:
        super().__init__()
        self.register_buffer("columns", torch.as_tensor(np.array(columns)), persistent=False)
        self.before = Standardizer(inputs)
        self.change = Standardizer(len(columns))
        self.states = EnsembleMLP(1, [inputs + len(columns), *net_arch, features])
        self.sequences = EnsembleMLP(1, [sequence, *net_arch, features])

    columns: torch.Tensor

    def measure(self, state: torch.Tensor, outcome: torch.Tensor) -> None:
        """
        Take new data into account in the standardisation.

        :param state: ``(n, D)``
        :param outcome: ``(n, m)``
        """
        self.before.update(state)
        self.change.update(outcome - state[:, self.columns])

    def encode(self, state: torch.Tensor, outcome: torch.Tensor) -> torch.Tensor:
        """
        :param state: ``(n, D)``
        :param outcome: ``(n, m)``
        :return: codes, ``(n, features)``
        """
        change = self.change(outcome - state[:, self.columns])
        code: torch.Tensor = self.states(torch.cat([self.before(state), change], dim=1))[0]
        return code

    def encode_sequences(self, sequences: torch.Tensor) -> torch.Tensor:
        """
        :param sequences: encoded, ``(n, k, A)``
        :return: codes, ``(n, features)``
        """
        code: torch.Tensor = self.sequences(sequences.flatten(1))[0]
        return code

    def information(
        self,
        state: torch.Tensor,
        sequences: torch.Tensor,
        outcome: torch.Tensor,
        others: torch.Tensor,
        *,
        complete: bool = False,
    ) -> torch.Tensor:
        """
        InfoNCE (van den Oord, Li & Vinyals, arXiv:1807.03748): ``log f / mean f + log K`` within, the mean over the
        sequence that was taken and ``K - 1`` that might have been. At most ``log K``; its mean over outcomes is, in
        expectation, at most the information. Sequences are drawn without regard to the state, so the same ``others``
        serve all rows, each as sequences from its own state.

        Where there are few sequences, the mean is best taken over each of them once (``complete``). Then ``f / sum f``
        is a distribution over sequences, and this the bound of Barber & Agakov (NIPS 2003), at most ``log N``: nothing
        is left to the chance of which others were drawn, and ``f`` of a sequence that was drawn twice is asked once.

        :param state: ``(n, D)``
        :param sequences: taken there, ``(n, k, A)``
        :param outcome: what came of them, ``(n, m)``
        :param others: drawn from the same source, ``(K - 1, k, A)``; or all ``N`` that there are, the one taken among
            them, ``(N, k, A)``
        :param complete: whether they are all
        :return: nats, ``(n,)``
        """
        code = self.encode(state, outcome)
        taken = (code * self.encode_sequences(sequences)).sum(dim=1, keepdim=True)
        scores = code @ self.encode_sequences(others).T
        if not complete:
            scores = torch.cat([taken, scores], dim=1)
        return taken[:, 0] - scores.logsumexp(dim=1) + math.log(scores.shape[1])


def imagine(
    dynamics: Dynamics, outcomes: Outcomes, state: Floats, sequences: Floats, generator: np.random.Generator
) -> Floats:
    """
    :param dynamics: how the state goes on
    :param outcomes: what of it is perceived
    :param state: ``(n, D)``
    :param sequences: what is done in each, ``(n, k, A)``
    :param generator: draws what chance brings, and who imagines
    :return: what is perceived in the end, ``(n, m)``
    """
    members = generator.integers(dynamics.members, size=len(state))
    return outcomes.draw(*foresee(dynamics, outcomes, state, sequences, members, generator), generator)
