"""What every method must do. A subclass of :class:`MethodCase` with the layer and its formula inherits all tests."""

import copy
import inspect
import io
import pickle
from collections import OrderedDict

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.model import normal_init
from mmengine.runner.checkpoint import load_state_dict as mmengine_load
from random_layers import settle
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from orepa_mm import expand, reparameterize
from orepa_mm.errors import ExpandError, FuseError, LayerError, PlainKernelError
from orepa_mm.layers import METHODS, ReparameterizableConv2d, SqueezedConv2d
from orepa_mm.layers.base import shape_of
from orepa_mm.testing import TOLERANCES, assert_forms_agree

FORMS = {
    '3x3': dict(kernel_size=3, padding=1),
    '1x1': dict(kernel_size=1),
    '5x5': dict(kernel_size=5, padding=2),
    'strided': dict(kernel_size=3, padding=1, stride=2),
    'grouped': dict(kernel_size=3, padding=1, groups=2),
    'wide padding': dict(kernel_size=3, padding=(2, 1)),
    'dilated': dict(kernel_size=3, padding=(2, 1), dilation=(2, 1)),
}
WRITES = {
    'data': lambda layer, value: layer.weight.data.copy_(value),  # as mmaction2's loader does
    'new data': lambda layer, value: setattr(layer.weight, 'data', value),
    'parameter': lambda layer, value: setattr(layer, 'weight', nn.Parameter(value)),
    'index': lambda layer, value: layer.weight.detach().__setitem__(slice(None), value),
    'view': lambda layer, value: layer.weight.data.flatten().copy_(value.flatten()),
    'rows': lambda layer, value: [row.copy_(new) for row, new in zip(layer.weight.data, value, strict=True)],
    'out': lambda layer, value: torch.mul(value, 1, out=layer.weight.data),
    'foreach': lambda layer, value: torch._foreach_copy_([layer.weight.data], [value]),
    'draw': lambda layer, value: normal_init(layer, mean=3, std=0),
    'init': lambda layer, value: nn.init.constant_(layer.weight, 3),
    'in place': lambda layer, value: torch.no_grad()(layer.weight.fill_)(3),
}


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def draw(*shape: int, dtype: torch.dtype = torch.float64, **options) -> Tensor:
    return torch.randn(*shape, dtype=dtype, **options)


class MethodCase:
    """Attributes: the layer, its kernel sizes, and forms beside those above, by name; a form may have other channels than 6 and 12."""

    layer: type[ReparameterizableConv2d]
    sizes: tuple[int, ...] = (1, 3, 5, 7)
    forms: dict[str, dict] = {}

    def formula(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What the layer computes, branch by branch as published, for autograd to differentiate."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc):
        forms = {name: form for name, form in (FORMS | self.forms).items() if form['kernel_size'] in self.sizes}
        values = dict(form=forms, way=WRITES, dtype=TOLERANCES, size=self.sizes, training=(False, True), strict=(False, True))
        for name in [name for name in values if name in metafunc.fixturenames]:  # in one order in every process
            metafunc.parametrize(name, list(values[name]), ids=str)

    def build(self, form: str = '3x3', dtype: torch.dtype = torch.float64, settled: bool = True, **options) -> ReparameterizableConv2d:
        """In eval mode, with weights and statistics as after training."""
        layer = self.layer(**dict(dict(in_channels=6, out_channels=12), **(FORMS | self.forms)[form]) | options, dtype=dtype).eval()
        if settled:
            settle(layer)
        return layer

    @property
    def linear(self) -> bool:
        return issubclass(self.layer, SqueezedConv2d)

    def test_outputs_and_gradients_are_those_of_the_formula(self, form, training):
        layer, x = self.build(form).train(training), draw(2, 6, 9, 8, requires_grad=True)
        for norm in layer.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.0
        outputs = layer(x), self.formula(layer, x)
        assert relative(*outputs) < 1e-10
        trained = [p for p in layer.parameters() if p.requires_grad]
        found, expected = (torch.autograd.grad(y.sin().sum(), [x, *trained]) for y in outputs)
        largest = max(gradient.abs().max() for gradient in expected)
        for a, b in zip(found, expected, strict=True):
            assert b.abs().max() > 0 and (a - b).abs().max() <= 1e-9 * largest

    def test_the_plain_form(self, form):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            layer, x = self.build(form).to(memory_format=memory_format), draw(2, 6, 9, 8).contiguous(memory_format=memory_format)
            assert_forms_agree(layer, x)
            plain = reparameterize(layer)
            assert type(plain) is nn.Conv2d and shape_of(plain) == shape_of(layer) and plain.extra_repr() == layer.extra_repr()
            assert plain.kernel_size == (1, 1) or plain.weight.is_contiguous(memory_format=memory_format)
            assert relative(layer.weight, plain.weight) < 1e-10 and (layer.bias is None or relative(layer.bias, plain.bias) < 1e-10)
        assert reparameterize(self.build(form, settled=False, device='meta')).weight.is_meta

    def test_dtypes(self, dtype):
        """Without oneDNN, whose convolutions in bfloat16 are wrong where a tap meets only padding."""
        exact, x = self.build(), draw(2, 6, 9, 8)
        layer = copy.deepcopy(exact).to(dtype)
        with torch.backends.mkldnn.flags(enabled=dtype.itemsize > 2):
            assert layer(x.to(dtype)).dtype == dtype and relative(layer(x.to(dtype)), exact(x)) < 2 * TOLERANCES[dtype]
            assert_forms_agree(layer, x.to(dtype))

    def test_autocast_computes_the_kernel_in_full_precision(self):
        layer, x = self.build(dtype=torch.float32).train(), draw(2, 6, 9, 8, dtype=torch.float32)
        expected = layer.weight
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert torch.equal(layer.weight, expected)
            layer(x).float().sum().backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters() if p.requires_grad)

    @pytest.mark.parametrize('padding', [1, 'same', 'valid'])
    @pytest.mark.parametrize('mode', ['zeros', 'reflect', 'replicate', 'circular'])
    def test_padding(self, mode, padding):
        if not self.linear and (mode, padding) != ('zeros', 1):
            with pytest.raises(LayerError, match='pads with numbers of zeros'):
                self.build(padding=padding, padding_mode=mode)
            return
        layer, x = self.build(padding=padding, padding_mode=mode), draw(1, 6, 9, 8)
        stock = nn.Conv2d(6, 12, 3, padding=padding, padding_mode=mode, dtype=torch.float64)
        stock.weight.data, stock.bias.data = layer.weight.detach(), layer.bias.detach()
        assert relative(layer(x), stock(x)) < 1e-10

    def test_copies(self, form):
        layer, x = self.build(form), draw(1, 6, 9, 8)
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        loaded = self.build(form)
        loaded.load_state_dict(torch.load(file, weights_only=True))
        assert all(torch.equal(twin(x), layer(x)) for twin in (loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))))

    @pytest.mark.parametrize('how', ['assign', 'to_empty', 'skip_init'])
    def test_built_empty_and_loaded(self, size, how):
        options = dict(in_channels=4, out_channels=36, kernel_size=size, padding=size // 2, groups=2)
        filled, x = self.build(**options), draw(2, 4, 9, 8)
        empty = nn.utils.skip_init(self.layer, **options) if how == 'skip_init' else self.build(**options, settled=False, device='meta')
        empty = empty.to_empty(device='cpu') if how == 'to_empty' else empty
        for value in (*empty.parameters(), *empty.buffers()):
            if not value.is_meta:
                value.data.fill_(7)
        empty.double().load_state_dict(filled.state_dict(), assign=how == 'assign')
        assert relative(empty.eval()(x), filled(x)) < 1e-10 and relative(reparameterize(empty)(x), filled(x)) < 1e-10

    def test_weights_of_another_dtype_that_are_assigned(self, dtype):
        """Its own, and where it is linear a plain kernel."""
        shape = dict(in_channels=4, out_channels=36, kernel_size=3, padding=1, bias=False)
        sources, x = [self.build(**shape, dtype=dtype)], draw(2, 4, 9, 8, dtype=dtype)
        if self.linear:
            sources.append(nn.Conv2d(**shape, dtype=dtype))
        for source in sources:
            for device in ('cpu', 'meta'):
                loaded = self.build(**shape, dtype=torch.float32, settled=False, device=device)
                loaded.load_state_dict(source.state_dict(), assign=True)
                assert {(value.dtype, value.is_meta) for value in loaded.parameters()} == {(dtype, False)}
                assert relative(loaded(x), source(x)) < 100 * torch.finfo(dtype).eps
                loaded.train()(x).sum().backward()

    def test_plain_kernels(self, size):
        """Linear branches represent any kernel; norms in branches have statistics that no kernel gives."""
        conv, x = nn.Conv2d(2, 18, size, padding=size // 2, groups=2 - size % 2, dtype=torch.float64), draw(2, 2, 9, 8)
        layer = self.build(**shape_of(conv))
        if self.linear:
            layer.load_state_dict(conv.state_dict())
            model = expand(nn.Sequential(OrderedDict(conv=conv)), method=self.method, kernel_sizes=(size,))
            assert type(model.conv) is self.layer
            for form in (layer, model, expand(copy.deepcopy(conv), method=self.method), reparameterize(model)):
                assert relative(form(x), conv(x)) < 1e-10
            assert model.state_dict().keys() == {'conv.weight', 'conv.bias'}
        else:
            with pytest.raises(ExpandError, match=f"method='{self.method}': its branches have norms"):
                expand(conv, method=self.method)
            for strict in (False, True):
                with pytest.raises(PlainKernelError, match=r'plain kernel "0\.weight".*re-parameterized'):
                    nn.Sequential(layer).load_state_dict(nn.Sequential(conv).state_dict(), strict=strict)

    def test_a_loader_that_is_not_strict_takes_no_kernel_of_the_training_form(self, form):
        """What a stock layer takes of it means the same there: somebody else's loader must not report branches as loaded kernels."""
        layer = self.build(form)
        stock = nn.Conv2d(**shape_of(layer), dtype=torch.float64)
        missing, _ = stock.load_state_dict(layer.state_dict(), strict=False)
        assert 'weight' in missing and ('bias' in missing or torch.equal(stock.bias, layer.bias))

    @property
    def method(self) -> str:
        return next(name for name, layer in METHODS.items() if layer is self.layer)

    @pytest.mark.parametrize('change', [dict(out_channels=10), dict(in_channels=2), dict(kernel_size=5), dict(groups=2)], ids=str)
    def test_plain_kernels_of_another_shape_are_left_to_torch(self, size, change, strict):
        shape = dict(in_channels=4, out_channels=36, kernel_size=size, padding=size // 2, bias=self.linear)
        model, stock = nn.Sequential(self.build(**shape)), nn.Sequential(nn.Conv2d(**shape))
        other = nn.Sequential(nn.Conv2d(**dict(shape, bias=False) | (change if size != 5 else change | dict(kernel_size=3))))
        state = other.state_dict() | {key: torch.zeros(36) for key in stock.state_dict() if 'bias' in key}
        messages = []
        for network in (stock, model):
            with pytest.raises(RuntimeError) as raised:
                network.load_state_dict(state, strict=strict)
            messages.append(next(line for line in str(raised.value).splitlines() if 'size mismatch' in line))
        assert messages[0] == messages[1]
        mmengine_load(model, state, strict=False)  # which logs it and goes on
        assert not self.linear or not model[0].bias.any()

    def test_what_is_written_into_a_weight_takes_effect_or_is_refused(self, way):
        layer = self.build(dtype=torch.float32)
        value = draw(12, 6, 3, 3, dtype=torch.float32) if way in list(WRITES)[:-3] else torch.full((12, 6, 3, 3), 3.0)
        if self.linear:
            WRITES[way](layer, value)
            assert relative(layer.weight, value) < 1e-5
        else:
            with pytest.raises(LayerError, match=f'the weight of a {self.layer.__name__} is computed'):
                WRITES[way](layer, value)
            with pytest.raises(LayerError, match=f'the bias of a {self.layer.__name__} is computed'):
                nn.init.zeros_(layer.bias)

    def test_protocols(self):
        """Of torch and mmcv: arguments, registry, norms that are fused into it, spectral norm."""
        layer, name, x = self.build(bias=False), self.layer.__name__, draw(2, 6, 9, 8)
        assert list(inspect.signature(self.layer.forward).parameters) == list(inspect.signature(nn.Conv2d.forward).parameters)
        assert type(build_conv_layer(dict(type=name), 4, 6, 3, padding=1, bias=False)) is self.layer
        assert type(build_conv_layer(dict(type=name, plain_sizes=(1,)), 4, 6, 1)) is nn.Conv2d
        norm = nn.BatchNorm2d(12).double().eval()
        settle(norm)
        if self.linear:
            assert relative(fuse_conv_bn_eval(layer, norm)(x), norm(layer(x))) < 1e-10
        else:
            with pytest.raises(LayerError, match='reparameterize'):
                fuse_conv_bn_eval(layer, norm)
        with pytest.raises(LayerError, match="no parameter 'weight'.*plain convolution"):
            ConvModule(4, 4, 3, padding=1, conv_cfg=dict(type=name), with_spectral_norm=True)

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            (dict(kernel_size=4), 'square kernel of odd size'),
            (dict(kernel_size=(1, 3)), 'square kernel of odd size'),
            (dict(groups=5), 'divisible by groups'),
            (dict(padding_mode='mirror'), 'padding_mode'),
            (dict(padding='same', stride=2), 'strided'),
            (dict(in_channels=0), 'must be positive'),
        ],
    )
    def test_bad_arguments_are_refused(self, options, message):
        with pytest.raises(LayerError, match=message):
            self.build(**options)


class NormedCase(MethodCase):
    """A method whose branches have norms of their own."""

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            (dict(padding=0), r'needs a padding of at least \(1, 1\)'),
            (dict(dilation=2), r'needs a padding of at least \(2, 2\)'),
            (dict(norm_cfg=dict(type='GN')), "'GN'"),
            (dict(norm_cfg=dict(type='BN', track_running_stats=False)), 'running statistics'),
        ],
    )
    def test_bad_norms_and_paddings_are_refused(self, options, message):
        with pytest.raises(LayerError, match=message):
            self.build(**options)

    def test_training_mode_has_no_plain_form(self):
        layer, name = self.build().train(), self.layer.__name__
        for model, path in ((nn.Sequential(layer), '0'), (layer, name)):
            with pytest.raises(FuseError, match=rf'"{path}\.origin_norm" inside a {name} is in training mode'):
                reparameterize(model)

    def test_kinds_of_norms(self):
        cfg = dict(type=self.layer.__name__, norm_cfg=dict(type='SyncBN'))
        assert type(build_conv_layer(cfg, 4, 6, 3, padding=1).origin_norm) is nn.SyncBatchNorm
        assert type(self.build(norm_cfg=dict(type=nn.SyncBatchNorm)).origin_norm) is nn.SyncBatchNorm
        bare = self.build(norm_cfg=dict(affine=False, eps=0.1), settled=False)
        assert bare.origin_norm.weight is None
        assert_forms_agree(bare, draw(1, 6, 9, 8))

    def test_weight_and_bias_describe_the_layer_in_eval_mode(self):
        """mmcv's efficient_conv_bn_eval computes with a convolution's weight and bias."""
        module = ConvModule(4, 6, 3, padding=1, conv_cfg=dict(type=self.layer.__name__), norm_cfg=dict(type='BN')).double().eval()
        settle(module)
        x, keys = draw(1, 4, 9, 8), list(module.conv.state_dict())
        expected = module(x)
        module.turn_on_efficient_conv_bn_eval()
        assert relative(module(x), expected) < 1e-10 and list(module.conv.state_dict()) == keys
