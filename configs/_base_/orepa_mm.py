# Registers OREPA's layers, backbones and hook. First among a config's bases: once imported, 'mmseg::' finds OneDL's mmseg too.
__import__('orepa_mm')

custom_imports = dict(imports=['orepa_mm'], allow_failed_imports=False)
