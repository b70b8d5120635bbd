"""What would go wrong with an environment and a configuration, found by playing random actions."""
