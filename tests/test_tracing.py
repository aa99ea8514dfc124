"""Whatever looks on while a layer computes records the right network: exporters, tracers, compilers and function transforms."""

import io
import warnings

import pytest
import torch
from method_case import relative
from mmengine.utils import digit_version
from test_orepa_conv import build
from torch import nn

from orepa_mm import DBBConv2d, OREPAConv2d

KINDS = ['3x3', '1x1', 'grouped', 'stem', 'dbb', 'network']


class Network(nn.Module):
    """A stem, a strided layer, a residual block and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(OREPAConv2d(6, 8, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.conv = OREPAConv2d(8, 8, 3, padding=1, groups=2, padding_mode='reflect')
        self.shortcut = OREPAConv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.conv(x) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


def stock_cannot(way, kind: str) -> bool:
    """Of stock layers neither: older torch has other exporters, 2.6 writes no batch norm as ONNX, 2.7 exports no nested one."""
    version = digit_version(torch.__version__)
    if way is onnx_by_exporting and kind in ('dbb', 'network'):
        return version < digit_version('2.7')
    if way in (onnx_by_exporting, exported) and version < digit_version('2.4'):
        return True
    return way is exported and kind == 'dbb' and version < digit_version('2.8')


def model_and_input(kind: str) -> tuple[nn.Module, torch.Tensor]:
    model = {'dbb': lambda: DBBConv2d(6, 12, 3, padding=1), 'network': Network}.get(kind, lambda: build(kind))()
    return model.eval(), torch.randn(2, 6, 12, 10)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def run_onnx(model: bytes, x: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def onnx_by_tracing(model, x):
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, **dict(dynamo=False) if torch.__version__ >= '2.5' else {})
    return lambda y: run_onnx(file.getvalue(), y)


def onnx_by_exporting(model, x):
    exported = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    return lambda y: run_onnx(exported.model_proto.SerializeToString(), y)


def traced(model, x):
    return torch.jit.trace(model, x)  # which compares the graphs of two calls


def exported(model, x):
    return torch.export.export(model, (x,)).module()


def compiled(model, x):
    torch.compiler.reset()  # one limit of recompilations holds for all layers of a process
    return torch.compile(model, backend='aot_eager', fullgraph=torch.__version__ >= '2.4')  # older ones leave the graph, and come back


def symbolically_traced(model, x):
    graph = torch.fx.symbolic_trace(model)
    assert any(
        'kernel' in str(node.target) or 'origin' in str(node.target) for node in graph.graph.nodes if node.op == 'get_attr'
    )  # branches, not a constant
    return graph


def batched(model, x):
    return lambda y: torch.vmap(lambda one: model(one.unsqueeze(0)).squeeze(0))(y)


def functional(model, x):
    return lambda y: torch.func.functional_call(model, dict(model.state_dict()), (y,))


WAYS = [onnx_by_tracing, onnx_by_exporting, traced, exported, compiled, symbolically_traced, batched, functional]


SLOW = [(kind, onnx_by_exporting) for kind in KINDS if kind not in ('3x3', '1x1', 'dbb')]  # torch's new exporter takes its time
PAIRS = [(kind, way) for kind in KINDS for way in WAYS]


@pytest.mark.parametrize(
    ('kind', 'way'),
    [pytest.param(*pair, marks=pytest.mark.slow) if pair in SLOW else pair for pair in PAIRS],
    ids=lambda part: getattr(part, '__name__', part),
)
def test_the_same_outputs(kind, way):
    if stock_cannot(way, kind):
        pytest.skip('this torch cannot do this with stock layers either')
    model, x = model_and_input(kind)
    with torch.no_grad():
        expected = model(x)
        again = way(model, x)
        assert relative(again(x), expected) < 1e-5
        other = torch.randn_like(x)
        assert relative(again(other), model(other)) < 1e-5


@pytest.mark.parametrize('kind', KINDS[:4])
def test_gradients_by_function_transforms(kind):
    model, x = model_and_input(kind)
    model, x = model.double(), x.double()
    parameters = dict(model.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x.unsqueeze(0),)).square().sum()

    expected = torch.autograd.grad(model(x).square().sum(), list(parameters.values()))
    one_by_one = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for (name, gradients), total in zip(one_by_one.items(), expected, strict=True):
        assert relative(gradients.sum(0), total) < 1e-10, name
