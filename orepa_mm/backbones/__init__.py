"""OREPA backbones, one thin subclass for each MM toolbox; :mod:`orepa_mm.registry` imports them when their toolbox is used."""
