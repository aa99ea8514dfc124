"""State dicts: reading them safely, comparing them with a model, and the names of published networks. Dicts in, dicts out."""
