"""GridLife: a grid world in which an agent has to keep its energy, temperature and integrity within limits."""

import gymnasium as gym

#: Registered ids, and the keywords that make each.
ENV_IDS: dict[str, dict[str, object]] = {
    "GridLife-v0": {},
    "GridLifeFlat-v0": {"flat": True},
    "GridLifeContinuous-v0": {"continuous": True},
    "GridLifeContinuousFlat-v0": {"continuous": True, "flat": True},
    "GridLifeScent-v0": {"scent": True},
    "GridLifeContinuousScent-v0": {"scent": True, "continuous": True},
    "GridLifeHidden-v0": {"hidden": ["energy"]},
    "GridLifeExplore-v0": {"task": "explore", "items": 0},
}


def register_envs() -> None:
    """Make the ids known to ``gymnasium.make`` and ``gymnasium.make_vec``; doing it again changes nothing."""
    for env_id, kwargs in ENV_IDS.items():
        if env_id not in gym.registry:
            gym.register(
                env_id,
                entry_point="persist_sb3.envs.gridlife:GridLifeEnv",
                vector_entry_point="persist_sb3.envs.vector:GridLifeVectorEnv",
                kwargs=kwargs,
                # The environment checks by itself that it was reset, and the tests check the rest: two wrappers less.
                order_enforce=False,
                disable_env_checker=True,
            )
