"""Linear regression that takes data as it comes, and is exact at every moment."""

import torch
from torch import nn

#: Added to the diagonal of the inputs' correlation matrix, in which one-hot codes are linearly dependent.
RIDGE = 1e-6

#: The regression is solved anew when there is so much more data than at the last time.
GROWTH = 1.1

#: Inputs whose standard deviation is below this have not varied.
LEAST_DEVIATION = 1e-6


class LinearFit(nn.Module):
    """
    Ridge regression (Hoerl & Kennard, 1970) of ``y`` on ``x``, from their running covariance. Before any data it
    answers 0, with a variance of 1.

    :param inputs: length of ``x``, ``p``
    :param outputs: length of ``y``, ``g``
    """

    count: torch.Tensor
    mean: torch.Tensor
    products: torch.Tensor
    squares: torch.Tensor
    solved_at: torch.Tensor
    #: ``(p, g)``
    weight: torch.Tensor
    #: ``(g,)``
    bias: torch.Tensor
    #: Mean square of what the fit leaves unexplained, ``(g,)``.
    residual: torch.Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        double = torch.float64
        self.register_buffer("count", torch.zeros((), dtype=double))
        self.register_buffer("mean", torch.zeros(inputs + outputs, dtype=double))
        self.register_buffer("products", torch.zeros(inputs, inputs + outputs, dtype=double))
        self.register_buffer("squares", torch.zeros(outputs, dtype=double))
        self.register_buffer("solved_at", torch.zeros((), dtype=double))
        self.register_buffer("weight", torch.zeros(inputs, outputs))
        self.register_buffer("bias", torch.zeros(outputs))
        self.register_buffer("residual", torch.ones(outputs))

    @torch.no_grad()
    def update(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """
        Take new data into account (Chan, Golub & LeVeque, 1979).

        :param x: ``(n, p)``
        :param y: ``(n, g)``
        """
        rows = torch.cat([x, y], dim=1).double()
        n, total = len(rows), self.count + len(rows)
        mean = rows.mean(dim=0)
        centred, delta = rows - mean, mean - self.mean
        share = self.count * n / total
        self.products += centred[:, : self.inputs].T @ centred + share * delta[: self.inputs, None] * delta
        self.squares += centred[:, self.inputs :].square().sum(dim=0) + share * delta[self.inputs :].square()
        self.mean += delta * n / total
        self.count.copy_(total)
        if total >= GROWTH * self.solved_at:
            self._solve()

    def _solve(self) -> None:
        covariance = self.products / self.count
        xx, xy = covariance.split([self.inputs, len(self.squares)], dim=1)
        deviation = xx.diagonal().sqrt()
        unit = torch.where(deviation > LEAST_DEVIATION, 1.0 / deviation, torch.zeros_like(deviation))[:, None]
        correlation = unit * xx * unit.T + RIDGE * torch.eye(self.inputs, dtype=xx.dtype, device=xx.device)
        weight = unit * torch.linalg.solve(correlation, unit * xy)
        left = self.squares / self.count - (weight * (2.0 * xy - xx @ weight)).sum(dim=0)
        self.weight.copy_(weight)
        self.bias.copy_(self.mean[self.inputs :] - self.mean[: self.inputs] @ weight)
        self.residual.copy_(left.clamp(min=0.0))
        self.solved_at.copy_(self.count)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        :param x: ``(n, p)``
        :return: ``(n, g)``
        """
        return torch.addmm(self.bias, x, self.weight)
