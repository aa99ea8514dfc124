"""The squeezed kernel is kept while no parameter changes, and never longer."""

import copy
import pickle

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from orepa_mm import OREPAConv2d


class Counting(OREPAConv2d):
    """Counts how often its kernel is squeezed."""

    squeezed = 0

    def _squeeze(self, memory_format):
        self.squeezed += 1
        return super()._squeeze(memory_format)


SHAPES = dict(pointwise=(6, 8, 1), kxk=(4, 8, 3), stem=(3, 8, 7))


def build(shape: str = 'kxk', **kwargs) -> Counting:
    i, o, k = SHAPES[shape]
    conv = Counting(i, o, k, padding=k // 2, **kwargs).eval()
    with torch.no_grad():
        for p in conv.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return conv


def picture(conv: nn.Module) -> torch.Tensor:
    return torch.randn(2, conv.in_channels, 9, 9)


def fresh(conv: OREPAConv2d, x: torch.Tensor) -> torch.Tensor:
    """The output from a kernel squeezed just now."""
    with torch.no_grad():
        return conv._conv_forward(x, OREPAConv2d._squeeze(conv, torch.contiguous_format), conv.bias)


@torch.no_grad()
def warm(conv: Counting, x: torch.Tensor) -> None:
    """Fill the cache, and see that it is used."""
    conv(x)
    count = conv.squeezed
    conv(x)
    assert conv.squeezed == count


@pytest.mark.parametrize('shape', SHAPES)
def test_squeezed_once_until_training(shape):
    conv = build(shape)
    x = picture(conv)
    warm(conv, x)
    with torch.no_grad():
        assert torch.equal(conv(x), fresh(conv, x))
    assert conv.squeezed == 1
    conv(x).sum().backward()  # with gradients every forward pass squeezes, in eval mode too
    assert conv.squeezed == 2 and all(p.grad is not None for p in conv.parameters())
    conv.train()
    assert all(type(p) is nn.Parameter for p in conv.parameters())


def step(conv):
    x = picture(conv)
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    conv(x).square().mean().backward()
    optimizer.step()


def fused_step(conv):
    for p in conv.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.AdamW(conv.parameters(), lr=0.1, fused=True).step()


def load(conv):
    conv.load_state_dict({key: value + 1 for key, value in conv.state_dict().items()})


def load_assigned(conv):
    conv.load_state_dict({key: value + 1 for key, value in conv.state_dict().items()}, assign=True)


@torch.no_grad()
def in_place(conv):
    next(conv.parameters()).view(-1)[0] += 1


def in_place_in_inference_mode(conv):
    with torch.inference_mode():
        next(conv.parameters()).mul_(2)


def through_data(conv):
    next(conv.parameters()).data.view(-1)[0] += 1


def new_data(conv):
    p = next(conv.parameters())
    p.data = p.data + 1


def through_detach(conv):
    next(conv.parameters()).detach().view(-1)[0] += 1


def through_numpy(conv):
    next(conv.parameters()).detach().numpy()[:] += 1


def through_storage(conv):
    p = next(conv.parameters())
    torch.empty(0).set_(p.untyped_storage()).add_(1)


def new_parameter(conv):
    owner = next(m for m in conv.modules() if m._parameters.get('scale') is not None)
    owner.scale = nn.Parameter(owner.scale.detach() + 1)


def to_double_and_back(conv):
    conv.to(torch.float64)
    with torch.no_grad():
        conv.double()(picture(conv).double())
    in_place(conv)
    conv.to(torch.float32)


def pruning(conv):
    from torch.nn.utils import prune

    owner = next(m for m in conv.modules() if m._parameters.get('scale') is not None)
    prune.random_unstructured(owner, 'scale', 0.5)


def redrawn(conv):
    conv.init_weights()


WAYS = (
    *(step, fused_step, load, load_assigned, in_place, in_place_in_inference_mode, through_data, new_data, through_detach, through_numpy),
    *(through_storage, new_parameter, to_double_and_back, pruning, redrawn),
)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('way', WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_every_change_is_seen(way, shape, mode):
    conv = build(shape)
    x = picture(conv)
    with mode():
        before = conv(x)
        conv(x)
    way(conv)  # in eval mode all along: changing the mode would drop the kernel anyway
    with mode():
        after = conv(x)
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh(conv, x))


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('alias', [lambda p: p.data, lambda p: p.detach().numpy(), lambda p: p.detach().view(-1)])
def test_an_alias_kept_from_before_is_seen(shape, alias):
    conv = build(shape)
    x = picture(conv)
    kept = alias(next(conv.parameters()))
    with torch.no_grad():
        before = conv(x)
        kept[:1] += 1
        assert torch.equal(conv(x), fresh(conv, x)) and not torch.equal(conv(x), before)
    del kept
    warm(conv, x)


@pytest.mark.parametrize('shape', SHAPES)
def test_an_alias_of_a_kept_kernel_is_seen(shape):
    conv = build(shape)
    x = picture(conv)
    warm(conv, x)
    kept = torch.detach(next(conv.parameters())).numpy()
    with torch.no_grad():
        conv(x)
        kept[:1] += 1
        assert torch.equal(conv(x), fresh(conv, x))


def test_frozen_layers_are_squeezed_once_in_training_too():
    conv = build().train()
    for p in conv.parameters():
        p.requires_grad = False
    x = picture(conv).requires_grad_()
    conv(x)
    conv(x).sum().backward()
    assert conv.squeezed == 1 and x.grad is not None
    in_place(conv)
    assert torch.equal(conv(x), fresh(conv, x))


def test_memory_format_follows_the_input():
    conv = build()
    x = picture(conv)
    with torch.no_grad():
        expected = conv(x)
        assert expected.is_contiguous()
        actual = conv(x.contiguous(memory_format=torch.channels_last))
    assert actual.is_contiguous(memory_format=torch.channels_last) and torch.allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_under_autocast_the_kernel_is_kept_in_full_precision(dtype):
    conv = build()
    x = picture(conv)
    with torch.no_grad():
        with torch.autocast('cpu', dtype=dtype):
            half = conv(x)
        assert half.dtype == dtype
        full = conv(x)
    assert conv.squeezed == 1 and torch.equal(full, fresh(conv, x))


def test_a_kernel_kept_in_inference_mode_serves_outside_it():
    conv = build()
    x = picture(conv)
    with torch.inference_mode():
        conv(x)
    with torch.no_grad():
        conv(x)
    assert conv.squeezed == 1
    for p in conv.parameters():
        p.requires_grad = False
    y = x.clone().requires_grad_()
    conv(y).sum().backward()
    assert y.grad is not None and conv.squeezed == 1


def test_copies_and_pickles_start_afresh():
    conv = build()
    x = picture(conv)
    warm(conv, x)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv)), copy.copy(conv)):
        other.eval()
        assert all(type(p) is nn.Parameter for p in other.parameters())
        in_place(other)
        with torch.no_grad():
            assert torch.equal(other(x), fresh(other, x))
            assert torch.equal(conv(x), fresh(conv, x))


def test_a_layer_shared_by_two_parents_and_tied_parameters():
    conv, other = build(), build()
    other.kernel.origin = conv.kernel.origin
    x = picture(conv)
    for layer in (conv, other, conv, other):
        with torch.no_grad():
            assert torch.equal(layer(x), fresh(layer, x))
    in_place(conv)
    conv.train()
    for layer in (conv, other, conv, other):
        with torch.no_grad():
            assert torch.equal(layer(x), fresh(layer, x))


class Net(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.conv = build()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        y = self.conv(inputs)
        return dict(loss=y.square().mean()) if mode == 'loss' else [y] if mode == 'predict' else y


def test_ema_swap(tmp_path):
    """mmengine's EMAHook swaps the weights through ``.data``, here while the model stays in eval mode."""
    data = [torch.randn(4, 9, 9) for _ in range(4)]
    runner = Runner(
        Net(),
        str(tmp_path),
        train_dataloader=dict(dataset=data, batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False), collate_fn=torch.stack),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.5)),
        custom_hooks=[dict(type='EMAHook')],
        default_scope='mmengine',
    )
    runner.model.data_preprocessor.forward = lambda x, training=False: dict(inputs=x)
    runner.train()
    hook = next(h for h in runner.hooks if isinstance(h, EMAHook))
    conv = runner.model.conv
    runner.model.eval()
    x = picture(conv)
    outputs = []
    for _ in range(3):
        with torch.no_grad():
            outputs.append(conv(x))
            assert torch.equal(outputs[-1], conv(x)) and torch.equal(outputs[-1], fresh(conv, x))
        hook._swap_ema_parameters()
    assert not torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_under_a_distributed_wrapper(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(build())
        conv, x = model.module, picture(model.module)
        model.eval()
        warm(conv, x)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        model(x).square().mean().backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            assert torch.equal(model(x), fresh(conv, x))
    finally:
        del model
        torch.distributed.destroy_process_group()
