"""The hyperparameters of ``trpo.yml``, as a module for rl-zoo3's ``-conf``."""

from persist_sb3.hyperparams import load

hyperparams = load("trpo")
