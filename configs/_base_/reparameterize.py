# Validates and tests in deployed form, refuses checkpoints that do not fit, ends where the loss is not finite; squeezes by a CUDA graph.
custom_hooks = [
    dict(type='ReparameterizeHook'),
    dict(type='CheckHook'),
    dict(type='FiniteLossHook'),
    dict(type='SqueezeGraphHook'),
]
