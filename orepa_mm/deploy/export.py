"""From a config and a checkpoint to a file that runs anywhere, compared with the training form before it is kept."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config

from ..errors import ExportError, UsageError
from . import formats
from .agreement import TOLERANCE, Agreement, compare, median_ms, stock_predictions
from .loading import load_model
from .metadata import fixed_preparation, metadata, preparation, usual_size
from .networks import deploy_network
from .pictures import find_pictures, read_picture

SCALES = ((1, 1), (0.7, 0.9), (1.25, 1.5), (1.6, 1.15))  # of the size that is asked for: what a dynamic graph is tried at


@dataclass
class Row:
    """One call of the check: its size (height, width), names of files, what came out, and milliseconds by what ran."""

    size: tuple[int, int]
    pictures: list[str]
    agreement: Agreement
    milliseconds: dict[str, float]


def export(
    cfg: Config,
    checkpoint: str | Path,
    path: Path,
    *,
    file_format: str = 'onnx',
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    softmax: bool = False,
    labels: bool = False,
    opset: int | None = None,
    float_input: bool = False,
    pictures: str | Path | None = None,
    ema: bool | None = None,
    calls: int = 3,
) -> Iterator[Row]:
    """Write ``path`` and compare it with the training form's stock predictions; the file is there when the first row comes.

    A row comes for each of four sizes, or of four pictures where the size is fixed; each time is the median of ``calls``. On an error
    ``path`` may be left, with what does not agree. ``file_format`` is 'onnx', or 'pt2' for a package of AOTInductor; other arguments as for
    :class:`.Classifier`, :class:`.Segmentor`, :func:`.export_program`, :func:`.write_onnx`, :func:`.find_pictures`, :func:`.load_model`.

    Raises:
        ExportError: When the model cannot be exported, or what was written predicts something else.
    """
    size = size or usual_size(cfg)
    if size is None:
        raise UsageError("the config's test pipeline does not say the size of the pictures; give --size H W.")
    if min(size) < 1 or max(size) > formats.LARGEST:
        raise UsageError(f'--size {size[0]} {size[1]}: sides of 1 to {formats.LARGEST} pixels are possible.')
    formats.require_torch()
    if file_format == 'onnx':
        formats.require_packages()
        formats.check_opset(opset)
    files = find_pictures(cfg, pictures)
    reference = load_model(cfg, checkpoint, ema)
    network = deploy_network(deepcopy(reference), softmax, labels)
    program = formats.export_program(network, size, dynamic, float_input)
    lowest = formats.lowest_side(network)
    steps, others = preparation(cfg, network.channels)
    facts = metadata(cfg, network, checkpoint, steps if dynamic else fixed_preparation(steps, size, network), others)
    if float_input:
        facts['input'] = facts['input'].replace('uint8', 'float32 (0 to 255)', 1)
    if dynamic:
        facts['sides'] = f'[{lowest}, {formats.LARGEST}]'
    if file_format == 'onnx':
        formats.write_onnx(program, network, facts, path, opset)
        runtime, run = 'onnxruntime', formats.load_onnx(path)
    else:
        formats.write_package(program, facts, path)
        runtime, run = 'AOTInductor', formats.load_package(path)
    for index, scales in enumerate(SCALES):
        height, width = (min(max(int(side * scale), lowest), formats.LARGEST) for side, scale in zip(size, scales, strict=True))
        here = (height, width) if dynamic else size
        names = [files[(index + shift) % len(files)] for shift in range(2 if dynamic and network.batched else 1)]
        picture = torch.cat([read_picture(name, here, network.channels) for name in names])
        agreement = compare(reference, network, run, picture)
        if agreement.problem:
            where = f'{here[0]} x {here[1]}, {", ".join(name.name for name in names)}'
            raise ExportError(f'what was written does not predict what the training form does ({where}): {agreement.problem}.')
        with torch.no_grad():
            callers: dict[str, Callable[[torch.Tensor], object]] = {
                'training form': partial(stock_predictions, reference),
                'eager': network,
                runtime: run,
            }
            times = {name: median_ms(partial(caller, picture), calls) for name, caller in callers.items()}
        yield Row(here, [name.name for name in names], agreement, times)


def table(rows: list[Row]) -> str:
    """The rows as text."""
    if not rows:
        return ''
    head = ['size', 'pictures', 'outputs', 'largest difference', *(f'{name} ms' for name in rows[0].milliseconds)]
    lines = [head]
    for row in rows:
        numbers = [f'{value:.1f}' for value in row.milliseconds.values()]
        names = row.pictures[0] + (f' + {len(row.pictures) - 1}' if row.pictures[1:] else '')
        largest = '-' if row.agreement.largest is None else f'{row.agreement.largest:.1e}'
        lines.append([f'{row.size[0]} x {row.size[1]}', names, row.agreement.found, largest, *numbers])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return f"{text}\n(differences of the output's scale, tolerance {TOLERANCE:.0e}; medians, {torch.get_num_threads()} thread(s))"
