# Tests in deployed form.
custom_hooks = [dict(type='ReparameterizeHook')]
