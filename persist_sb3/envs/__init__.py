"""
GridLife, a grid world in which an agent has to keep its energy, temperature and integrity within limits, and Recovery
RL's navigation domains.
"""

import gymnasium as gym

#: Registered ids of GridLife, and the keywords that make each.
ENV_IDS: dict[str, dict[str, object]] = {
    "GridLife-v0": {},
    "GridLifeFlat-v0": {"flat": True},
    "GridLifeScent-v0": {"scent": True},
    "GridLifeHidden-v0": {"hidden": ["energy"]},
    "GridLifeMemory-v0": {},
    "GridLifeScentMemory-v0": {"scent": True},
    "GridLifeExplore-v0": {"task": "explore", "items": 0},
    # Reserves keep warm, and no reserves are right for both summer and winter.
    "GridLifeSeason-v0": {
        "scent": True,
        "climate": 0.36,
        "insulation": 0.75,
        "hot_spots": 0,
        "cold_spots": 0,
        "hazards": 0,
        "ringed_food": 0,
        "food": 12,
        "food_energy": 0.1,
        "food_regrowth": 0.05,
    },
    # For agents that were trained on GridLife-v0: the world is not as it was.
    "GridLifeScarce-v0": {"food": 4, "food_regrowth": 0.015},
    "GridLifeDrift-v0": {"energy_drift": 2e-5},
    "GridLifeRare-v0": {"hazards": 6, "ring_hazards": 2, "hazard_damage": 0.35},
    "GridLifeDropout-v0": {"dropout": 0.3},
}
#: And of each the form with Box actions: GridLifeContinuousFlat-v0.
CONTINUOUS_IDS = {env_id.replace("GridLife", "GridLifeContinuous", 1): env_id for env_id in ENV_IDS}
ENV_IDS |= {continuous: {**ENV_IDS[discrete], "continuous": True} for continuous, discrete in CONTINUOUS_IDS.items()}

#: Registered ids of :class:`~persist_sb3.envs.navigation.NavigationEnv`, and the keywords that make each.
NAVIGATION_IDS: dict[str, dict[str, object]] = {"Navigation1-v0": {"layout": 1}, "Navigation2-v0": {"layout": 2}}
#: Where the environments of an id come from that is more than GridLife's own keywords: one of them, and many.
ENTRY_POINTS: dict[str, tuple[str, str]] = {
    "GridLifeDropout-v0": ("persist_sb3.dropout:make", "persist_sb3.dropout:make_vector"),
    "GridLifeMemory-v0": ("persist_sb3.memory:make", "persist_sb3.memory:make_vector"),
    "GridLifeScentMemory-v0": ("persist_sb3.memory:make", "persist_sb3.memory:make_vector"),
}
GRIDLIFE = "persist_sb3.envs.gridlife:GridLifeEnv", "persist_sb3.envs.vector:GridLifeVectorEnv"


def register_envs() -> None:
    """Make the ids known to ``gymnasium.make`` and ``gymnasium.make_vec``; doing it again changes nothing."""
    for env_id, kwargs in ENV_IDS.items():
        if env_id not in gym.registry:
            one, many = ENTRY_POINTS.get(CONTINUOUS_IDS.get(env_id, env_id), GRIDLIFE)
            gym.register(
                env_id,
                entry_point=one,
                vector_entry_point=many,
                kwargs=kwargs,
                # The environment checks by itself that it was reset, and the tests check the rest: two wrappers less.
                order_enforce=False,
                disable_env_checker=True,
            )
    for env_id, kwargs in NAVIGATION_IDS.items():
        if env_id not in gym.registry:
            gym.register(
                env_id,
                entry_point="persist_sb3.envs.navigation:NavigationEnv",
                kwargs=kwargs,
                max_episode_steps=100,
                disable_env_checker=True,
            )
