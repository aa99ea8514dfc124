"""Half precision, extreme weights and norms: training stays finite or ends by naming the layer; the hook sees faults and nothing else."""

from types import SimpleNamespace

import pytest
import torch
from conftest import loss_scaler
from hypothesis import given
from hypothesis import strategies as st
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from random_layers import HALF, networks, repvgg_block, settle
from small_runs import built
from torch import nn

from orepa_mm import DBBConv2d, OREPAConv2d
from orepa_mm.engine.finite_loss_hook import FiniteLossHook
from orepa_mm.engine.reparameterize_hook import ReparameterizeHook
from orepa_mm.errors import NotFiniteError
from orepa_mm.reparam import plan_swaps
from orepa_mm.reparam.comparison import LayerComparison

OREPA = dict(type='OREPAConv2d', plain_sizes=(1,), branches=('origin', 'avg', 'freq', 'sequence', 'separable'))


class Net(nn.Module):
    """A large stem and one layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = OREPAConv2d(3, 8, 15, stride=2, padding=7, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.orepa = OREPAConv2d(8, 8, 3, padding=1)
        self.pointwise = OREPAConv2d(8, 8, 1)
        self.dbb = DBBConv2d(8, 8, 3, padding=1)
        self.repvgg = repvgg_block(8, 8, conv_cfg=OREPA)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        return self.repvgg(self.dbb(self.pointwise(self.orepa(x))))


@pytest.mark.parametrize('stress', ['none', 'large weights', 'no variance', 'large gradients'])
@pytest.mark.parametrize('autocast', [True, False])
@pytest.mark.parametrize('dtype', HALF)
def test_training_stays_finite_or_names_the_layer(dtype, autocast, stress):
    """Batches of one picture; with a loss scaler under autocast, with weights in half precision otherwise."""
    model = Net() if autocast else Net().to(dtype)
    x = torch.randn(1, 3, 16, 16, dtype=None if autocast else dtype)
    if stress == 'large weights':
        for parameter in model.parameters():
            parameter.data.mul_(30)
    elif stress == 'no variance':
        x[:, 1:] = 1
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    scaler = loss_scaler(enabled=autocast)
    wrapper = OptimWrapper(optimizer)
    if autocast:
        wrapper.loss_scaler = scaler
    hook, runner = FiniteLossHook(patience=2), SimpleNamespace(model=model, optim_wrapper=wrapper)
    hook.before_train(runner)

    def train() -> None:
        for _ in range(4):
            optimizer.zero_grad()
            with torch.autocast('cpu', dtype, enabled=autocast):
                loss = model(x).float().square().mean()
            scaler.scale(loss * (1e30 if stress == 'large gradients' else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
            hook.after_train_iter(runner, 0)
            assert loss.isfinite() or autocast  # else the hook stops

    # float16 ends at 65504. Its gradients are left out by the scaler; bfloat16's of 1e30 are not, and the weights after that step tell.
    narrow = dtype == torch.float16
    if (stress == 'large weights' and narrow) or (stress == 'large gradients' and not (narrow and autocast)):
        with pytest.raises(NotFiniteError, match=r'first to give such values is "stem[.\w]*", a \w+'):
            train()
    else:
        train()
    if stress != 'large gradients' or (narrow and autocast):
        assert all(value.isfinite().all() for value in model.parameters())
    hook.after_train(runner)
    model.stem.kernel.stages[0].origin.data.fill_(float('nan'))
    model(x)  # the hook looks no more


class Regression(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.conv = OREPAConv2d(3, 4, 3)
        self.head = nn.Conv2d(4, 1, 3)
        self.power = 1

    def forward(self, inputs, mode='tensor'):
        return dict(loss=(self.head(self.conv(inputs)).mean() + 1e30) ** self.power)


def test_a_loss_is_looked_at_when_the_optimizer_is_about_to_step():
    """Not in the forward pass, which would wait for a GPU; of each pass of an accumulated step; and where no step is of torch."""
    model, x = Regression(), torch.ones(1, 3, 5, 5)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    hook = FiniteLossHook()
    hook.before_train(SimpleNamespace(model=model, optim_wrapper=OptimWrapper(optimizer)))
    for power in (2, 1):
        model.power = power
        model(x)['loss'].backward()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NotFiniteError, match='all layers give finite values'):
        optimizer.step()
    assert all(map(torch.equal, model.parameters(), before))
    hook.before_train(runner := SimpleNamespace(model=model, optim_wrapper=None))
    model.head.weight.data.fill_(float('inf'))
    model(x)
    with pytest.raises(NotFiniteError, match='"head"'):
        hook.after_train_iter(runner, 0)


@pytest.mark.parametrize('cause', ['weights', 'overflow', 'loss', None])
def test_a_run_ends_before_the_step_that_would_spoil_the_weights(cause, tmp_path):
    model = Regression()
    model.init_weights()  # as the runner would
    if cause == 'weights':
        model.head.weight.data[0] = float('inf')
    elif cause == 'overflow':
        model.head.weight.data.fill_(1e38)
        model.conv.bias.data.fill_(1e38)
    elif cause == 'loss':
        model.power = 2
    before = [p.detach().clone() for p in model.parameters()]
    runner = built(model, {}, tmp_path, 1, custom_hooks=[dict(type='FiniteLossHook')])
    if cause is None:
        runner.train()
        assert not any(torch.equal(p, value) for p, value in zip(model.parameters(), before, strict=True) if value.dim() == 1)
        assert not model._forward_hooks
        return
    with pytest.raises(NotFiniteError, match={
        'weights': r'"head", a Conv2d; its "weight" is not finite.*clip_grad',
        'overflow': r'"head", a Conv2d; its own weights are finite, so values became too large',
        'loss': 'all layers give finite values: look at the targets and the loss',
    }[cause]):  # fmt: skip
        runner.train()
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), before, strict=True))


def compare(model: nn.Module, x: torch.Tensor, swaps, autocast: bool) -> dict[str, float]:
    """How far each layer's forms are apart, in parts of the hook's tolerance."""
    comparison, hook = LayerComparison(swaps), ReparameterizeHook()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        model(x)
    comparison.stop()
    return {path: d.largest / hook._tolerance_for(d.parameter) for path, d in comparison.differences.items()}


# With weights in half precision not the harsh ones: what cancels between branches in four channels is beyond its digits.
@given(st.one_of(networks(dtypes=(torch.float32,), harsh=True), networks(dtypes=HALF)), st.booleans())
def test_the_tolerance_is_above_rounding(case, autocast):
    """The hook raises no alarm: the forms of each layer are apart by less than its tolerance."""
    model, x = case
    found = compare(model, x, plan_swaps(model), autocast and x.dtype == torch.float32)
    assert all(parts < 1 for parts in found.values()), found


LAYERS = {
    'OREPA': lambda: OREPAConv2d(64, 64, 3, padding=1),
    'OREPA 1x1': lambda: OREPAConv2d(256, 64, 1),
    'OREPA stem': lambda: OREPAConv2d(3, 64, 7, padding=3),
    'DBB': lambda: DBBConv2d(64, 64, 3, padding=1),
    'RepVGG': lambda: repvgg_block(64, 64, conv_cfg=OREPA),
}
# One weight is changed by this part of the layer's largest weight.
FAULTS = {torch.float32: 5e-4, torch.float16: 0.1, torch.bfloat16: 0.7}


@pytest.mark.parametrize(('dtype', 'autocast'), [(torch.float32, True), *((dtype, False) for dtype in FAULTS)])
@pytest.mark.parametrize('layer', LAYERS)
def test_a_fault_in_one_weight_is_found(layer, dtype, autocast):
    layer = LAYERS[layer]().eval()
    settle(layer)
    model = nn.Sequential(layer).to(dtype)
    swaps = plan_swaps(model)
    weight = next(p for p in swaps[0].new.parameters() if p.dim() == 4).data.view(-1)
    x = torch.randn(2, getattr(layer, 'in_channels', 64), 14, 14, dtype=dtype)
    assert compare(model, x, swaps, autocast)['0'] < 0.5
    for place in torch.randint(len(weight), (4,)):
        whole = weight[place].clone()
        weight[place] += FAULTS[dtype] * weight.abs().max()
        parts = compare(model, x, swaps, autocast)['0']
        weight[place] = whole
        assert parts > 1
