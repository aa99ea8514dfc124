# Tests in deployed form. Long trainings compile the squeezing where that is faster: docs/speed.md.
custom_hooks = [dict(type='ReparameterizeHook'), dict(type='CompileSqueezingHook', min_iters=10000)]
