# Validates and tests in deployed form, and refuses checkpoints that do not fit.
custom_hooks = [dict(type='ReparameterizeHook'), dict(type='CheckHook')]
