"""Vectors of categorical variables, with gradients: the latent state of DreamerV3 (Hafner et al., 2023)."""

import torch


def log_unimix(logits: torch.Tensor, unimix: float) -> torch.Tensor:
    """
    Mixed with the uniform distribution, no class is impossible and no divergence infinite.

    :param logits: ``(..., groups, classes)``
    :param unimix: share of the uniform distribution, in ``[0, 1]``
    :return: logarithm of the probabilities, of the same shape
    """
    if unimix == 0.0:
        return logits.log_softmax(dim=-1)
    return (logits.softmax(dim=-1) * (1.0 - unimix) + unimix / logits.shape[-1]).log()


def straight_through(log_p: torch.Tensor, gumbel: torch.Tensor) -> torch.Tensor:
    """
    A sample by the Gumbel-max trick, whose gradient is that of the probabilities (Bengio, Léonard & Courville,
    "Estimating or propagating gradients through stochastic neurons", 2013).

    :param log_p: normalised, ``(..., groups, classes)``
    :param gumbel: standard Gumbel noise, of the same shape; zeros for the mode
    :return: one-hot codes, of the same shape
    """
    p = log_p.exp()
    code = torch.nn.functional.one_hot((log_p + gumbel).argmax(dim=-1), log_p.shape[-1]).to(p.dtype)
    return code + p - p.detach()


def kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """
    :param log_p: normalised, ``(..., groups, classes)``
    :param log_q: the same
    :return: the divergence ``KL(p || q)``, summed over groups, ``(...)``
    """
    return (log_p.exp() * (log_p - log_q)).sum(dim=(-2, -1))


def balanced_kl(
    posterior: torch.Tensor, prior: torch.Tensor, free_nats: float, dynamics: float, representation: float
) -> torch.Tensor:
    """
    DreamerV3's divergence: the prior is drawn to the posterior with one weight, and the posterior to the prior with
    another, less; what is below ``free_nats`` costs a constant, and so has no gradient.

    :param posterior: logarithms of probabilities, ``(..., groups, classes)``
    :param prior: the same
    :param free_nats: that cost nothing to go without
    :param dynamics: weight with which the prior learns
    :param representation: weight with which the posterior does
    :return: ``(...)``
    """
    learn_prior = kl(posterior.detach(), prior).clamp(min=free_nats)
    learn_posterior = kl(posterior, prior.detach()).clamp(min=free_nats)
    return dynamics * learn_prior + representation * learn_posterior
