"""What runs inside a Runner: the hooks, the optimizer constructor and the checks of checkpoints."""
