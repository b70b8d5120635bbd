"""The figures of a report: what the episodes of a run say, in numbers that can be written to a file."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from persist_sb3.metrics import EpisodeRecord, SurvivalCurve, bonus_shares, intrinsic_share, survival_curve


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """
    Confidence interval of a share, good at 0 and 1 and for few trials too (Wilson, 1927).

    :param successes: at most ``trials``
    :param trials: at least 1
    :param level: its confidence, in (0, 1)
    :return: lower and upper bound, in [0, 1]
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, extra = successes / trials, z * z / trials
    centre = (share + extra / 2) / (1 + extra)
    half_width = z / (1 + extra) * math.sqrt(share * (1 - share) / trials + extra / trials / 4)
    return max(centre - half_width, 0.0), min(centre + half_width, 1.0)


def mean_interval(values: ArrayLike, level: float = 0.95) -> dict[str, float]:
    """
    :param values: independent of each other, ``(n,)``
    :param level: confidence of the interval, in (0, 1)
    :return: ``mean``, and ``low`` and ``high`` by the normal approximation; these are NaN for a single value
    """
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    half_width = NormalDist().inv_cdf(0.5 + level / 2) * error
    return {"mean": mean, "low": mean - half_width, "high": mean + half_width}


def common_horizon(curves: Sequence[SurvivalCurve]) -> float:
    """
    :param curves: of the runs to be compared, at least one
    :return: the longest time up to which all of them are known: restricted means up to it compare
    """
    known = [curve.last for curve in curves if curve.at(curve.last) > 0.0]
    return min(known) if known else max(curve.last for curve in curves)


def violations(episodes: Sequence[EpisodeRecord]) -> int:
    """
    :param episodes: any number
    :return: how many of them violate a constraint, once or more
    """
    return sum(not episode.survived for episode in episodes)


def per_thousand_steps(episodes: Sequence[EpisodeRecord]) -> float:
    """
    :param episodes: at least one
    :return: how many of them violate a constraint, per 1000 steps of all of them
    """
    return 1000.0 * violations(episodes) / sum(episode.length for episode in episodes)


def deaths(episodes: Sequence[EpisodeRecord]) -> dict[str, int] | None:
    """
    :param episodes: any number
    :return: by constraint, how many episodes violated it first; None if it is not known which
    """
    first = Counter(episode.violated for episode in episodes if not episode.survived)
    constraints = dict.fromkeys(constraint for episode in episodes for constraint in episode.satisfaction)
    return None if None in first else {constraint: first[constraint] for constraint in constraints}


def intervention_rate(episodes: Sequence[EpisodeRecord]) -> float | None:
    """
    :param episodes: at least one
    :return: share of their steps at which a shield changed the action; None if there was none
    """
    counts = [episode.interventions for episode in episodes if episode.interventions is not None]
    return sum(counts) / sum(episode.length for episode in episodes) if len(counts) == len(episodes) else None


def with_intrinsic(episodes: Iterable[EpisodeRecord]) -> list[EpisodeRecord]:
    """
    :param episodes: any number
    :return: those with the reward term ``intrinsic``
    """
    return [episode for episode in episodes if "intrinsic" in episode.reward_terms]


def bonus_names(episodes: Sequence[EpisodeRecord]) -> list[str]:
    """
    :param episodes: any number
    :return: names of the bonuses that all of them tell apart; none where the intrinsic reward is a single one
    """
    first = episodes[0].bonuses if episodes else ()
    return [name for name in first if all(name in episode.bonuses for episode in episodes)]


def intrinsic_by_time_alive(
    episodes: Sequence[EpisodeRecord], bonus: str | None = None, groups: int = 10
) -> list[dict[str, float]]:
    """
    The curve of the intrinsic reward against survival: whether those who live long are those who are paid for it.

    :param episodes: at least one, each with the reward term ``intrinsic``
    :param bonus: of this one alone, one of :func:`bonus_names`. Default: of all bonuses together
    :param groups: most groups that they are put in by the time that they lasted without a violation, of about equally
        many episodes; episodes of one length stay together
    :return: of each group ``time_alive``, the mean of its times, and of the intrinsic reward per step what
        :func:`mean_interval` says
    """
    time, paid = _time_and_intrinsic(episodes, bonus)
    # By their middle rank: those of the horizon may be most of all.
    group = np.floor(groups * (rankdata(time) - 0.5) / len(time))
    members = [group == number for number in np.unique(group)]
    return [{"time_alive": float(time[rows].mean()), **mean_interval(paid[rows])} for rows in members]


def intrinsic_correlation(episodes: Sequence[EpisodeRecord], bonus: str | None = None) -> float | None:
    """
    The same in one number.

    :param episodes: any number
    :param bonus: of this one alone, one of :func:`bonus_names`. Default: of all bonuses together
    :return: Spearman's correlation between the time that an episode lasted without a violation and its intrinsic reward
        per step; None if there is none, or one of the two is the same in all episodes
    """
    if not episodes or any("intrinsic" not in episode.reward_terms for episode in episodes):
        return None
    time, paid = _time_and_intrinsic(episodes, bonus)
    if np.ptp(time) == 0.0 or np.ptp(paid) == 0.0:
        return None
    return float(np.corrcoef(rankdata(time), rankdata(paid))[0, 1])


def _time_and_intrinsic(
    episodes: Sequence[EpisodeRecord], bonus: str | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    time = np.array([episode.duration for episode in episodes], dtype=np.float64)
    sums = [episode.reward_terms["intrinsic"] if bonus is None else episode.bonuses[bonus] for episode in episodes]
    return time, np.array(sums) / [episode.length for episode in episodes]


def evaluation_figures(episodes: Sequence[EpisodeRecord], horizon: float) -> dict[str, Any]:
    """
    :param episodes: of an evaluation, at least one
    :param horizon: of the restricted mean, see :func:`common_horizon`
    :return: the figures; intervals are of 95 %, reward terms, bonuses and returns are per episode
    """
    survived = sum(episode.survived for episode in episodes)
    low, high = wilson_interval(survived, len(episodes))
    curve = survival_curve(episodes)
    lengths = np.array([episode.length for episode in episodes])
    near = sum(episode.near_steps for episode in episodes)
    return {
        "episodes": len(episodes),
        "steps": int(lengths.sum()),
        "survival": {"survived": survived, "share": survived / len(episodes), "low": low, "high": high},
        "time_to_violation": {
            "median": curve.median,
            "restricted_mean": curve.restricted_mean(horizon),
            "horizon": horizon,
        },
        "violations_per_1k_steps": per_thousand_steps(episodes),
        # Of all steps, those after a first violation included.
        "satisfaction": {
            constraint: float(np.average([episode.satisfaction[constraint] for episode in episodes], weights=lengths))
            for constraint in episodes[0].satisfaction
        },
        "deaths": deaths(episodes),
        "intervention_rate": intervention_rate(episodes),
        "recovery_rate": sum(episode.recovered_steps for episode in episodes) / near if near else math.nan,
        "task_return": mean_interval([episode.task_return for episode in episodes]),
        "reward_terms": {
            name: mean_interval([episode.reward_terms[name] for episode in episodes])
            for name in episodes[0].reward_terms
        },
        "bonuses": {
            name: mean_interval([episode.bonuses[name] for episode in episodes]) for name in bonus_names(episodes)
        },
    }


def training_figures(episodes: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """
    :param episodes: of training, at least one
    :return: the figures
    """
    end = max(episode.timestep for episode in episodes)
    paid = with_intrinsic(episodes)
    last = [episode for episode in episodes if episode.timestep > 0.9 * end]
    return {
        "timesteps": end,
        "episodes": len(episodes),
        "violations": violations(episodes),
        "violations_per_1k_steps": per_thousand_steps(episodes),
        "violations_per_1k_steps_in_last_tenth": per_thousand_steps(last),
        "intervention_rate": intervention_rate(episodes),
        "deaths": deaths(episodes),
        "intrinsic_share": intrinsic_share(_sums(episodes)),
        "intrinsic_correlation": intrinsic_correlation(paid),
        "intrinsic_by_time_alive": intrinsic_by_time_alive(paid) if paid else None,
        "bonuses": _bonuses(paid),
    }


def _bonuses(episodes: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """
    :param episodes: with the reward term ``intrinsic``, any number
    :return: of each bonus, where there are several, its mean a step, and the figures of the intrinsic reward
    """
    names = bonus_names(episodes)
    sums = {name: sum(episode.bonuses[name] for episode in episodes) for name in names}
    shares = bonus_shares(_sums(episodes), sums) if names else {}
    return {
        name: {
            "mean": sums[name] / sum(episode.length for episode in episodes),
            "share": shares.get(name),
            "correlation": intrinsic_correlation(episodes, name),
            "by_time_alive": intrinsic_by_time_alive(episodes, name),
        }
        for name in names
    }


def _sums(episodes: Sequence[EpisodeRecord]) -> dict[str, float]:
    """
    :param episodes: at least one
    :return: sum of each reward term that all of them report
    """
    names = set.intersection(*(set(episode.reward_terms) for episode in episodes))
    return {name: sum(episode.reward_terms[name] for episode in episodes) for name in names}


def without_nan(figures: Any) -> Any:
    """
    :param figures: nested dicts and lists of numbers and strings
    :return: the same with None for NaN and infinity, which JSON does not have
    """
    if isinstance(figures, Mapping):
        return {key: without_nan(value) for key, value in figures.items()}
    if isinstance(figures, list):
        return [without_nan(value) for value in figures]
    if isinstance(figures, float) and not math.isfinite(figures):
        return None
    return figures
