"""Writing a network into a file that runs without this package."""

import importlib.util
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.utils import digit_version
from torch import export
from torch.export import ExportedProgram

from ..errors import ExportError, UsageError
from .networks import DeployNetwork

LARGEST = 4096  # pixels along a side, and
LARGEST_BATCH = 256  # pictures: what a dynamic graph is promised to take
LOWEST_OPSET = 18  # of torch's exporter
LOWEST_TORCH = '2.7'  # 2.6 exports no detector, and no batch norm to ONNX
PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')

Run = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


def require_packages(packages: tuple[str, ...] = PACKAGES) -> None:
    """Raise :class:`.UsageError` unless what ONNX files are written and checked with is installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"{', '.join(missing)} missing: pip install 'orepa_mm[deploy]'.")


def require_torch() -> None:
    """Raise :class:`.UsageError` where torch is too old to export networks."""
    if digit_version(torch.__version__) < digit_version(LOWEST_TORCH):
        raise UsageError(
            f'torch {torch.__version__} trains, but cannot export; an environment with torch {LOWEST_TORCH} or later can, from the same '
            'config and checkpoint.'
        )


def check_opset(opset: int | None) -> None:
    """Raise :class:`.UsageError` for an ONNX operator set that cannot be written here."""
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not LOWEST_OPSET <= opset <= newest:
        raise UsageError(f'--opset {opset}: {LOWEST_OPSET} is the oldest that torch exports to, {newest} the newest that onnx here knows.')


def lowest_side(network: DeployNetwork) -> int:
    """Pixels along a side below which a feature map is a single pixel, which a graph of any size cannot have."""
    return network.coarsest_stride() + 1


def _first_line(error: Exception) -> str:
    lines = [line.strip(' -') for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def _own_operators(network: DeployNetwork) -> str:
    """Which operators of mmcv a network has, in words: exporters know none of them."""
    kinds = {type(module).__name__ for module in network.modules() if type(module).__module__.startswith('mmcv.ops.')}
    kinds -= {'RoIAlign'}  # switched to torchvision's
    return f" (it has operators of mmcv's own: {', '.join(sorted(kinds))})" if kinds else ''


def export_program(network: DeployNetwork, size: tuple[int, int], dynamic: bool, float_input: bool = False) -> ExportedProgram:
    """The graph of a network for pictures of one size, or of any from :func:`lowest_side` on; several at once where it is batched.

    Pictures are uint8; with ``float_input`` float32 of the same values.

    Raises:
        ExportError: When the network has something that no graph can hold, or pictures of this size are too small for it.
    """
    name = type(network.model).__name__
    batch, shapes = 1, None
    if dynamic:
        lowest = lowest_side(network)
        if min(size) < lowest:
            raise ExportError(
                f'{size[0]} x {size[1]} is too small: {name} has feature maps of one pixel below {lowest} x {lowest}; give a larger --size.'
            )
        # Traced with an example in which no side is one pixel anywhere, and no two are equal.
        side = max(128, lowest - 1)
        size, batch = (2 * side, 3 * side), 2 if network.batched else 1
        height, width = (export.Dim(side, min=lowest, max=LARGEST) for side in ('height', 'width'))
        shapes = ({2: height, 3: width} | ({0: export.Dim('batch', min=1, max=LARGEST_BATCH)} if network.batched else {}),)
    picture = torch.randint(0, 256, (batch, network.channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = picture.float() if float_input else picture
    try:
        with torch.no_grad(), _quiet():
            network(picture)
    except (RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ExportError(f'{name} cannot take pictures of {size[0]} x {size[1]}: {_first_line(error)}') from None
    try:
        with torch.no_grad(), _quiet():
            return export.export(network, (picture,), dynamic_shapes=shapes)
    except Exception as error:  # torch raises whatever its tracing met
        remedy = ' (try one size, without --dynamic)' if dynamic else ''
        raise ExportError(f'{name} cannot be exported{_own_operators(network)}: {_first_line(error)}{remedy}') from error


def write_onnx(program: ExportedProgram, network: DeployNetwork, metadata: dict[str, str], path: Path, opset: int | None = None) -> None:
    """Write an ONNX file, weights and ``metadata`` included; ``opset`` is torch's where none is given.

    Raises:
        ExportError: When an operator of the graph has no translation, or none at this ``opset``.
    """
    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                external_data=False,
                verbose=False,
                opset_version=opset,
                input_names=['picture'],
                output_names=list(network.outputs),
            )
            assert exported is not None  # without dynamo=True it would be
            model = exported.model_proto
    except Exception as error:  # as above
        raise ExportError(f'{type(network.model).__name__} cannot be written as ONNX: {_first_line(error)}') from error
    version = next(entry.version for entry in model.opset_import if entry.domain == '')
    if opset is not None and version != opset:
        raise ExportError(f'--opset {opset}: an operator of {type(network.model).__name__} could only be written at {version}.')
    _tidy(model)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def _tidy(model: Any) -> None:
    """Leave out where each node came from (with paths of this machine) and give the dimensions their names."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, *model.functions):
        part.ClearField('metadata_props')
        part.ClearField('doc_string')
    names = {}
    for dim, name in zip(graph.input[0].type.tensor_type.shape.dim, ('batch', 'channels', 'height', 'width'), strict=True):
        if dim.dim_param:
            names[dim.dim_param] = name
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)


def write_package(program: ExportedProgram, metadata: dict[str, str], path: Path) -> None:
    """Compile a graph with AOTInductor for this machine's processor and write the package, for ``torch._inductor.aoti_load_package``.

    Raises:
        ExportError: When it cannot be compiled.
    """
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / 'model.pt2'
        # Frozen weights are laid out for the processor. The compiler loses tensors that are written into a graph, as detectors have.
        configs = {'freezing': not program.tensor_constants, 'aot_inductor.metadata': metadata}
        try:
            with torch.no_grad(), _quiet():
                torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=configs)
        except Exception as error:  # as above
            raise ExportError(f'the graph cannot be compiled: {_first_line(error)}') from error
        shutil.copyfile(package, path)


def load_onnx(path: Path) -> Run:
    """A function that runs an ONNX file with onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=['CPUExecutionProvider'])
    (taken,) = session.get_inputs()
    dtype = torch.float32 if taken.type == 'tensor(float)' else torch.uint8
    return lambda picture: tuple(map(torch.from_numpy, session.run(None, {taken.name: picture.to(dtype).numpy()})))


def load_package(path: Path) -> Run:
    """A function that runs a package of :func:`write_package`."""
    with tempfile.TemporaryDirectory() as folder:  # torch reads what is named *.pt2 only
        package = Path(folder) / 'model.pt2'
        shutil.copyfile(path, package)
        model = torch._inductor.aoti_load_package(str(package))
    return lambda picture: tuple(model(picture))
