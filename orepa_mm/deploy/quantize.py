"""Eight-bit networks for onnxruntime, calibrated with real pictures."""

import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from .formats import require_packages

Array = np.ndarray[Any, Any]
PACKAGES = ('onnx', 'onnxruntime')
OUTPUTS = dict(classification='scores', segmentation='logits')  # task -> what is compared
LARGE = 1024  # pixels of a side
NOISE = 0.3  # correlation of neighbouring pixels; that of noise is 0, also after JPEG, that of photographs above 0.8


class OnnxNetwork:
    """An exported classifier or segmentor, a file or its content, in onnxruntime on the CPU; ``facts`` are its metadata.

    Raises:
        UsageError: When it is no ONNX network, or none of the two kinds with a uint8 picture as its input.
    """

    def __init__(self, model: Path | bytes, threads: int = 1) -> None:
        require_packages(PACKAGES)
        import onnxruntime

        name = 'the model' if isinstance(model, bytes) else str(model)
        if isinstance(model, Path) and not model.is_file():
            raise UsageError(f'{model}: no such file.')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            source = model if isinstance(model, bytes) else str(model)
            self.session = onnxruntime.InferenceSession(source, options, providers=['CPUExecutionProvider'])
        except Exception as error:  # onnxruntime has a class for each kind of damage
            raise UsageError(f'{name}: onnxruntime cannot load it ({str(error).splitlines()[0][:200]}).') from None
        self.facts: dict[str, Any] = {key: _parsed(value) for key, value in self.session.get_modelmeta().custom_metadata_map.items()}
        self.task = self.facts.get('task')
        inputs, outputs = self.session.get_inputs(), [output.name for output in self.session.get_outputs()]
        self.output = OUTPUTS.get(str(self.task))
        if self.output not in outputs or len(inputs) != 1 or inputs[0].type != 'tensor(uint8)' or len(inputs[0].shape) != 4:
            raise UsageError(
                f'{name}: is no classifier or segmentor as tools/deploy/export_onnx.py writes them (task {self.task}, '
                f'outputs {", ".join(outputs)}); their input is one uint8 picture, their outputs scores or logits.'
            )
        self.input, self.shape = inputs[0].name, inputs[0].shape

    def __call__(self, picture: Array) -> Array:
        """uint8 [N, C, H, W] -> scores [N, classes] or logits [N, classes, H', W']."""
        return self.session.run([self.output], {self.input: picture})[0]

    def answers(self, output: Array) -> Array:
        """The label of each picture or pixel; where several are possible, which of them."""
        if self.task == 'segmentation' and output.shape[1] == 1:
            return output > np.log(1 / (1 / self.facts.get('threshold', 0.3) - 1))  # mmseg's where the file does not say
        return output > 0 if self.facts.get('scores') == 'sigmoid logits' else output.argmax(1)


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def neighbour_correlation(picture: Array) -> float:
    """Correlation of the grey values of neighbouring pixels of a picture [H, W, C], of the rows or the columns; 0 where all are equal."""
    top, left = (max(0, side - LARGE) // 2 for side in picture.shape[:2])
    grey = picture[top : top + LARGE, left : left + LARGE].mean(2)
    pairs = ((grey[1:], grey[:-1]), (grey[:, 1:], grey[:, :-1]))
    return max([0.0, *(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in pairs if a.size and a.std() > 0 and b.std() > 0)])


def check_correlations(correlations: list[float], source: Path) -> None:
    """Refuse pictures from ``source`` that are all noise or blank: ranges measured on them are not those of real pictures."""
    largest = max(correlations)
    if largest < NOISE:
        raise UsageError(
            f'{source}: noise or blank pictures only: neighbouring pixels are uncorrelated in all {len(correlations)} (at most '
            f'{largest:.2f}; photographs have 0.8 and more). Ranges measured on noise are wrong for real pictures: give some of the '
            'training set.'
        )


def quantize(model: Path, pictures: Iterable[Array], per_channel: bool = True, full_range: bool = False) -> bytes:
    """The content of an int8 network from a float one: onnxruntime's static quantization, weights int8, activations uint8.

    The activations' ranges are measured on ``pictures``, uint8 [1, C, H, W]. ``per_channel``: a scale for each output channel of a kernel.
    ``full_range``: weights of eight bits instead of seven; processors without VNNI add two products in 16 bits, which overflow then.
    """
    require_packages(PACKAGES)
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    graph = onnx.load(model)
    if any(node.op_type == 'QuantizeLinear' for node in graph.graph.node):
        raise UsageError(f'{model}: is quantized already.')
    name = graph.graph.input[0].name

    class Pictures(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(pictures)

        def get_next(self) -> dict[str, Array] | None:
            picture = next(self.rest, None)
            return None if picture is None else {name: picture}

    with tempfile.TemporaryDirectory() as folder:
        prepared, out = Path(folder) / 'prepared.onnx', Path(folder) / 'int8.onnx'
        quant_pre_process(model, prepared)
        quantize_static(
            prepared,
            out,
            Pictures(),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=not full_range,
        )
        quantized = onnx.load(out)
    onnx.helper.set_model_props(quantized, {entry.key: entry.value for entry in graph.metadata_props})
    return quantized.SerializeToString()


@dataclass
class Change:
    """How far the outputs of two networks are apart over some pictures.

    ``typical``: root mean square of the differences, relative to that of the outputs around their mean; ``largest``: relative to the
    largest magnitude; ``same``: share of the answers (labels of pictures or of pixels) that are the same.
    """

    typical: float
    largest: float
    same: float


def change(expected: OnnxNetwork, actual: OnnxNetwork, pictures: list[Array]) -> Change:
    """Compare two networks on pictures, each uint8 [1, C, H, W]."""
    squares = spread = largest = scale = same = count = answers = 0.0
    mean = np.mean([expected(picture).mean() for picture in pictures])
    for picture in pictures:
        a, b = expected(picture).astype(np.float64), actual(picture).astype(np.float64)
        squares, spread, count = squares + ((a - b) ** 2).sum(), spread + ((a - mean) ** 2).sum(), count + a.size
        largest, scale = max(largest, np.abs(a - b).max()), max(scale, np.abs(a).max())
        equal = expected.answers(a) == expected.answers(b)
        same, answers = same + equal.sum(), answers + equal.size
    return Change(float(np.sqrt(squares / spread)), float(largest / scale), float(same / answers))


def latencies(networks: list[OnnxNetwork], picture: Array, rounds: int = 30) -> list[float]:
    """Median milliseconds of a call of each network, the networks in turn, after three calls that do not count."""
    times: list[list[float]] = [[] for _ in networks]
    for i in range(rounds + 3):
        for network, found in zip(networks, times, strict=True):
            start = time.perf_counter()
            network(picture)
            if i >= 3:
                found.append(1000 * (time.perf_counter() - start))
    return [statistics.median(found) for found in times]
