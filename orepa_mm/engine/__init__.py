"""What runs inside a Runner: the hooks, the measuring and the checks of checkpoints."""
