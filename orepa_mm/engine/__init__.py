"""What runs inside a Runner: the hook, the measuring and the checks of checkpoints."""
