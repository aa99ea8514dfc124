"""Squeezing together is the same training as layer by layer, whatever happens to the model; on a CPU without the CUDA graph."""

import copy
import logging
import pickle
from types import SimpleNamespace

import pytest
import torch
from conftest import few
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import orepa_mm
from orepa_mm import OREPAConv2d
from orepa_mm.engine import squeeze_graph_hook
from orepa_mm.layers import squeeze_graph
from orepa_mm.layers.squeeze_graph import SqueezeGraph
from orepa_mm.reparam.comparison import largest_difference

ON_GPU = torch.cuda.is_available()
DEVICE = 'cuda' if ON_GPU else 'cpu'


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Computes anew what a graph would, into the same memory."""
    if ON_GPU:
        return

    def capture(call, pool=None):
        results = call()

        @torch.enable_grad()
        def replay():
            if pool is None:
                results[:] = call()  # kernels: the gradients are taken of these
            else:
                for result, found in zip(results, call(), strict=True):
                    result.copy_(found)

        return results, replay, 'pool'

    monkeypatch.setattr(squeeze_graph, 'capture', capture)
    monkeypatch.setattr(squeeze_graph, 'warm_up', lambda call: call())


class Net(nn.Module):
    def __init__(self, branches: str = 'full') -> None:
        super().__init__()
        self.stem = OREPAConv2d(3, 28, 7, padding=3, branches=branches)
        self.shared = OREPAConv2d(28, 28, 3, padding=1, branches=branches)
        self.point = OREPAConv2d(28, 28, 1, branches=branches)
        self.frozen = OREPAConv2d(28, 28, 3, padding=1, branches=branches).requires_grad_(False)
        self.unused = OREPAConv2d(3, 3, 3, branches=branches)
        self.again: bool | None = None  # use_reentrant of a part that is recomputed in the backward pass

    def part(self, x: torch.Tensor) -> torch.Tensor:
        return self.point(F.relu(self.shared(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.shared(self.stem(x)))
        x = self.part(x) if self.again is None else checkpoint(self.part, x, use_reentrant=self.again)
        return torch.tanh(self.frozen(x)).square().mean((1, 2, 3))


def pair(branches: str = 'full') -> tuple[nn.Module, nn.Module, SqueezeGraph]:
    one_by_one = Net(branches).double().to(DEVICE)
    together = copy.deepcopy(one_by_one)
    return one_by_one, together, SqueezeGraph(together)


def train(model: nn.Module, steps: int = 5, forwards: int = 1, accumulate: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    losses = []
    for step in range(steps):
        pictures = [torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64).to(DEVICE) for _ in range(forwards)]
        loss = sum(model(x).sum() for x in pictures)
        loss.backward()
        losses.append(loss.detach())
        if (step + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return losses


def alike(one_by_one: nn.Module, together: nn.Module, **options) -> None:
    losses = train(one_by_one, **options), train(together, **options)
    assert largest_difference(*losses) < 1e-10
    weights = ([parameter.detach() for parameter in model.parameters()] for model in (one_by_one, together))
    assert largest_difference(*weights) < 1e-10


def captured(graph: SqueezeGraph) -> list[str]:
    return list(graph._captured.layers) if graph._captured is not None else []


@pytest.mark.parametrize('options', [{}, dict(forwards=2), dict(accumulate=2)], ids=['steps', 'two forward passes', 'accumulation'])
@pytest.mark.parametrize('branches', ['full', 'light'])
def test_the_same_training(branches, options):
    one_by_one, together, graph = pair(branches)
    alike(one_by_one, together, **options)
    assert captured(graph) == ['stem', 'shared', 'point']


@pytest.mark.parametrize('reentrant', [True, False])
def test_channels_last_and_parts_that_are_recomputed(reentrant):
    one_by_one, together, graph = pair()
    for model in (one_by_one, together):
        model.again = reentrant
        model.to(memory_format=torch.channels_last)
        model.register_forward_pre_hook(lambda model, args: (args[0].contiguous(memory_format=torch.channels_last),))
    alike(one_by_one, together)
    assert captured(graph)


def change(model: nn.Module, how: str) -> None:
    if how == 'pruned':
        orepa_mm.prune_branches(model, threshold=0.3)
    elif how == 'frozen':
        model.shared.requires_grad_(False)
    elif how == 'moved':
        model.float().double()
    elif how == 'loaded':
        model.load_state_dict({key: value * 0.9 for key, value in model.state_dict().items()})
    elif how == 'another layer':
        torch.manual_seed(1)
        model.shared = OREPAConv2d(28, 28, 3, padding=1).double().to(DEVICE)


@pytest.mark.parametrize('how', ['pruned', 'frozen', 'moved', 'loaded', 'another layer'])
def test_a_model_that_changes_meanwhile(how):
    one_by_one, together, graph = pair()
    alike(one_by_one, together)
    for model in (one_by_one, together):
        change(model, how)
    alike(one_by_one, together)
    assert set(captured(graph)) == {'stem', 'shared', 'point'} - ({'shared'} if how == 'frozen' else set())


def test_evaluation_and_copies_between_steps():
    one_by_one, together, graph = pair()
    alike(one_by_one, together)
    copies = [copy.deepcopy(one_by_one), copy.deepcopy(together), pickle.loads(pickle.dumps(together))]
    for each in copies[1:]:
        trained = copy.deepcopy(copies[0])
        alike(trained, each)
    assert captured(graph)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, device=DEVICE)
    with torch.no_grad():
        outputs = [one_by_one(x), together(x), together.eval()(x), orepa_mm.reparameterize(copy.deepcopy(one_by_one.eval()))(x)]
    assert max(largest_difference(outputs[0], each) for each in outputs) < 1e-10
    together.train()
    together(x)  # no backward pass
    with torch.no_grad():
        assert largest_difference(together.eval()(x), outputs[0]) < 1e-10
    graph.remove()
    one_by_one.train(), together.train()
    alike(one_by_one, together)
    assert captured(graph) == [] and not together._forward_pre_hooks


def test_gradients_of_gradients_are_refused():
    *_, together, graph = pair()
    train(together)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, device=DEVICE)
    weight = together.point.kernel.origin
    (gradient,) = torch.autograd.grad(together(x).sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.sum().backward()


@pytest.mark.parametrize('reason', ['moving', 'nothing trains', 'out of memory'])
def test_it_ends_where_it_is_of_no_use(reason, caplog, monkeypatch):
    one_by_one, together, graph = pair()
    caplog.set_level('INFO')
    if reason == 'moving':
        for _ in range(squeeze_graph.MOST_CAPTURES + 2):
            train(together, steps=3)
            together.float().double()
        message = '5 times the parameters were replaced or moved'
    elif reason == 'nothing trains':
        for name in ('stem', 'shared', 'point'):
            getattr(together, name).requires_grad_(False)
        together.unused.requires_grad_(True)
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64, device=DEVICE)
        together(x), together(x)
        message = 'no kernel trains'
    else:

        def fail(*args):
            raise RuntimeError('CUDA out of memory.\nmore lines')

        monkeypatch.setattr(squeeze_graph, 'capture', fail)
        train(together, steps=3)
        message = 'takes longer: CUDA out of memory.'
    warnings = [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
    assert len(warnings) == 1 and message in warnings[0] and not together._forward_pre_hooks
    if reason == 'out of memory':
        one_by_one.load_state_dict(together.state_dict())
        alike(one_by_one, together)


@pytest.mark.parametrize('name', few(['imagenet', 'cityscapes'], 'imagenet'))
def test_in_a_runner(name, tools, tmp_path, monkeypatch):
    """Validation by ReparameterizeHook, EMA and checkpoints included; and nothing is left on the model."""
    weights, graphs = [], []
    for allowed in (False, True):
        monkeypatch.setattr(squeeze_graph_hook, 'can_capture', lambda model, allowed=allowed: allowed)
        monkeypatch.setattr(squeeze_graph_hook, 'SqueezeGraph', lambda model: graphs.append(SqueezeGraph(model)) or graphs[-1])
        status, error = tools.train(name, tmp_path / str(allowed), iterations=4)
        assert status == 0, error
        weights.append(torch.load(tmp_path / str(allowed) / 'last.pth', weights_only=False)['state_dict'])
    (graph,) = graphs
    assert graph._captures == 1 and not graph.model._forward_pre_hooks
    assert weights[0].keys() == weights[1].keys()
    # On a GPU two runs alike differ as well: TF32, and sums in an order of their own.
    assert ON_GPU or largest_difference(*(list(state.values()) for state in weights)) < 1e-4


def test_a_compiled_training_has_no_graph(monkeypatch, caplog):
    monkeypatch.setattr(squeeze_graph_hook, 'can_capture', lambda model: True)
    hook, logger = squeeze_graph_hook.SqueezeGraphHook(), logging.getLogger('squeezing')
    for compiled in (True, dict(backend='eager'), False):
        hook.before_train(SimpleNamespace(model=Net(), cfg=dict(compile=compiled), logger=logger))
        assert (hook.graph is None) == bool(compiled) == ('no CUDA graph' in caplog.text)
        caplog.clear()


def test_where_a_graph_can_be():
    assert squeeze_graph.can_capture(Net().to(DEVICE)) == ON_GPU
    assert not squeeze_graph.can_capture(nn.Conv2d(3, 3, 3).to(DEVICE)) and not squeeze_graph.can_capture(Net())
