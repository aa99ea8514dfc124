# The hooks of OREPAHook one by one.
custom_hooks = [
    dict(type='ReparameterizeHook'),
    dict(type='CheckHook'),
    dict(type='FiniteLossHook'),
    dict(type='SqueezeGraphHook'),
]
