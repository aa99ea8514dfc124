"""Everything raised on purpose, for an error the user can mend. The message says what is wrong and what to do."""


class OREPAError(Exception):
    """Base of all errors of this package; the tools print its message as one line."""


class LayerError(OREPAError, ValueError):
    """A layer is built with arguments it cannot have."""


class PlainKernelError(OREPAError, RuntimeError):
    """A state dict with a plain kernel is loaded into a layer with branches."""


class FuseError(OREPAError, ValueError):
    """A block or layer has no plain form now."""


class ExpandError(OREPAError, ValueError):
    """A model or layer cannot be given branches."""


class BranchesError(OREPAError, ValueError):
    """Branches cannot be attached to an optimizer, or not trained as asked."""


class NotHeldError(BranchesError):
    """An optimizer has no weight that could train as branches."""


class PruneError(OREPAError, ValueError):
    """Branches cannot be pruned."""


class DeployError(OREPAError, ValueError):
    """A model cannot be written in the form asked for."""


class ReparameterizeError(OREPAError, RuntimeError):
    """Testing in deployed form makes no sense."""


class NotFiniteError(OREPAError, ArithmeticError):
    """A training has come to values that are not finite."""


class CheckpointError(OREPAError, ValueError):
    """A checkpoint cannot be used."""


class LayoutError(OREPAError, ValueError):
    """Keys or shapes of a state dict are not those of the network it should be of."""


class ExportError(OREPAError, ValueError):
    """A model cannot be exported, or what was written differs from it."""


class UsageError(OREPAError, ValueError):
    """A config, option or dataset is wrong."""


def some(names: list[str], count: int = 3, between: str = ', ') -> str:
    """The first few, for a message."""
    return between.join(names[:count]) + (f' and {len(names) - count} more' if len(names) > count else '')
