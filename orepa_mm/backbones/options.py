"""The options of OREPA convolutions that the backbones take themselves."""

from typing import Any

from ..errors import LayerError


def given_options(method: str, conv_cfg: dict[str, Any] | None, **options: Any) -> dict[str, Any]:
    """Those options of the OREPA convolutions that are not None.

    Raises:
        LayerError: For one beside a ``conv_cfg``, or of another method.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if conv_cfg is not None:
            raise LayerError(f'{name} and conv_cfg: give the {name} in the conv_cfg')
        if method != 'OREPA':
            raise LayerError(f"{name}={value!r} is for method='OREPA', not {method!r}")
    return given
