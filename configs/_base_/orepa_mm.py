# Registers OREPA's layers, backbones and hooks. First among a config's bases: once imported, 'mmseg::' finds OneDL's mmseg too.
__import__('orepa_mm')

custom_imports = dict(imports=['orepa_mm'], allow_failed_imports=False)
# For every config: checkpoints that are whole whatever happens, runs that go on after a stop as if there had been none, and OREPAHook.
safe_hooks = dict(checkpoint=dict(type='AtomicCheckpointHook'), seed=dict(type='SeedHook'), orepa=dict(type='OREPAHook'))
