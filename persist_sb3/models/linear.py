"""Linear regression that takes data as it comes, and is exact at every moment."""

import numpy as np
import torch
from numpy.typing import NDArray

from persist_sb3.models.networks import Statistics
from persist_sb3.models.prepared import Views

Floats = NDArray[np.float32]

#: Added to the diagonal of the inputs' correlation matrix, in which one-hot codes are linearly dependent.
RIDGE = 1e-6

#: A regression is solved anew when there is so much more data than at the last time.
GROWTH = 1.1

#: Rows for each input that a regression needs.
ENOUGH = 10

#: Rows that are not sorted by group before they are answered.
FEW = 16
_ROWS = np.arange(FEW)

#: Inputs whose standard deviation is below this have not varied.
LEAST_DEVIATION = 1e-6


class LinearFit(Statistics):
    """
    Ridge regression (Hoerl & Kennard, 1970) of ``y`` on ``x``, from their running covariance, for each of ``k`` groups
    of rows by itself. A group with little data so far answers as all rows together do; if they are few, too, the answer
    is the mean of ``y``.

    :param groups: how many, ``k``
    :param inputs: length of ``x``, ``p``
    :param outputs: length of ``y``, ``g``
    """

    # Moments of all rows together, and of each group, (1 + k, ...).
    count: torch.Tensor
    mean: torch.Tensor
    products: torch.Tensor
    squares: torch.Tensor
    solved_at: torch.Tensor
    #: Of each group, ``(k, p, g)``.
    weight: torch.Tensor
    #: ``(k, 1, g)``
    bias: torch.Tensor
    #: Mean square of what the answers leave unexplained, ``(g,)``; 1 before any data.
    residual: torch.Tensor

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.groups = groups
        self.inputs = inputs
        # All rows together are no other regression than that of a single group.
        rows = 1 + groups if groups > 1 else 1
        for name, shape in (
            ("count", (rows,)),
            ("mean", (rows, inputs + outputs)),
            ("products", (rows, inputs, inputs + outputs)),
            ("squares", (rows, outputs)),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("solved_at", torch.zeros((), dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(groups, inputs, outputs))
        self.register_buffer("bias", torch.zeros(groups, 1, outputs))
        self.register_buffer("residual", torch.ones(outputs))
        self._views = Views(self.weight, self.bias)

    @torch.no_grad()
    def update(self, x: torch.Tensor, y: torch.Tensor, group: torch.Tensor) -> None:
        """
        Take new data into account.

        :param x: ``(n, p)``
        :param y: ``(n, g)``
        :param group: of each row, ``(n,)``
        """
        rows = torch.cat([x, y], dim=1).double()
        self._add(0, rows)
        for index in range(1, len(self.count)):
            self._add(index, rows[group == index - 1])
        if self.count[0] >= GROWTH * self.solved_at:
            self._solve()

    def _add(self, index: int, rows: torch.Tensor) -> None:
        """The moments of two samples together (Chan, Golub & LeVeque, 1979)."""
        n, count = len(rows), self.count[index].clone()
        if not n:
            return
        mean = rows.mean(dim=0)
        centred, delta = rows - mean, mean - self.mean[index]
        share = count * n / (count + n)
        self.products[index] += centred[:, : self.inputs].T @ centred + share * delta[: self.inputs, None] * delta
        self.squares[index] += centred[:, self.inputs :].square().sum(dim=0) + share * delta[self.inputs :].square()
        self.mean[index] += delta * n / (count + n)
        self.count[index] += n

    def _solve(self) -> None:
        solved = [self._regression(index) for index in range(len(self.count))]
        residual = torch.zeros_like(self.squares[0])
        for group in range(self.groups):
            own = self.groups > 1 and bool(self.count[1 + group] >= ENOUGH * self.inputs)
            weight, bias, unexplained = solved[1 + group if own else 0]
            self.weight[group], self.bias[group] = weight.float(), bias.float()
            residual += unexplained * (self.count[1 + group] if self.groups > 1 else self.count[0])
        self.residual.copy_(residual / self.count[0])
        self.solved_at.copy_(self.count[0])

    def _regression(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        :param index: 0 for all rows, ``1 + i`` for group ``i``
        :return: weights ``(p, g)``, biases ``(g,)``, and the mean square of what these leave unexplained, ``(g,)``
        """
        mean_x, mean_y = self.mean[index].split([self.inputs, self.squares.shape[1]])
        count = self.count[index].clamp(min=1.0)
        xx, xy = (self.products[index] / count).split([self.inputs, len(mean_y)], dim=1)
        variance = self.squares[index] / count
        if count < ENOUGH * self.inputs:
            return torch.zeros_like(xy), mean_y, variance
        deviation = xx.diagonal().sqrt()
        unit = torch.where(deviation > LEAST_DEVIATION, 1.0 / deviation, torch.zeros_like(deviation))[:, None]
        correlation = unit * xx * unit.T + RIDGE * torch.eye(self.inputs, dtype=xx.dtype, device=xx.device)
        weight = unit * torch.linalg.solve(correlation, unit * xy)
        left = variance - (weight * (2.0 * xy - xx @ weight)).sum(dim=0)
        return weight, mean_y - mean_x @ weight, left.clamp(min=0.0)

    def forward(self, x: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        """
        :param x: ``(n, p)``
        :param group: of each row, ``(n,)``
        :return: ``(n, g)``
        """
        if self.groups == 1:
            return torch.addmm(self.bias[0], x, self.weight[0])
        answer = x.new_zeros(len(x), self.weight.shape[2])
        for index in range(self.groups):
            rows = torch.nonzero(group == index)[:, 0]
            answer = answer.index_copy(0, rows, torch.addmm(self.bias[index], x[rows], self.weight[index]))
        return answer

    def answer(self, x: Floats, group: NDArray[np.intp]) -> Floats:
        """
        The same without torch.

        :param x: ``(n, p)``
        :param group: of each row, ``(n,)``
        :return: ``(n, g)``
        """
        weight, bias = self._views()
        if self.groups == 1:
            return x @ weight[0] + bias[0]
        if len(x) <= FEW:
            # All groups at once: for a few rows, to sort them takes longer than to compute what is not asked for.
            every: Floats = np.matmul(x, weight)
            own: Floats = every[group, _ROWS[: len(x)]]
            own += bias[group, 0]
            return own
        answer = np.empty((len(x), weight.shape[2]), dtype=np.float32)
        for index in range(self.groups):
            rows = np.flatnonzero(group == index)
            if len(rows):
                answer[rows] = x[rows] @ weight[index] + bias[index]
        return answer
