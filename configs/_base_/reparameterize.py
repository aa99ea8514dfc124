# Validates and tests in deployed form, refuses checkpoints that do not fit, and ends where the loss is not finite.
custom_hooks = [dict(type='ReparameterizeHook'), dict(type='CheckHook'), dict(type='FiniteLossHook')]
