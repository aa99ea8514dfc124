# Registers OREPA's layers, backbones and hook, and tests in deployed form.
custom_imports = dict(imports=['orepa_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='ReparameterizeHook')]
