"""Branches that hardly add to their kernels go, and the outputs, the optimizer and a resumed run do not notice."""

from pathlib import Path

import pytest
import torch
import torch.nn.utils.prune
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.utils import digit_version
from PIL import Image
from small_models import config, path_of, save_weights
from small_runs import built, check_resuming, last_checkpoint, run
from torch import nn

import orepa_mm
from orepa_mm import OREPAConv2d
from orepa_mm.engine import prune_branches_hook
from orepa_mm.engine.prune_branches_hook import PruneBranchesHook
from orepa_mm.errors import BranchesError, LayerError, PruneError
from orepa_mm.optim import attached_to
from orepa_mm.optim.prune import drop_branches_of
from orepa_mm.reparam.prune import branch_shares, drop_branches, kernels_with_branches


def network(dtype=torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    options = dict(dtype=dtype)
    return nn.Sequential(
        OREPAConv2d(3, 8, 7, 2, 3, **options),
        nn.ReLU(),
        OREPAConv2d(8, 8, 3, groups=2, **options),
        nn.ReLU(),
        OREPAConv2d(8, 4, 1, **options),
    )


def test_shares_are_those_of_the_norms():
    model = network()
    kernel = model[2].kernel
    parts = kernel.parts()
    assert ((sum(parts.values()).view(8, 3, 3, 4).permute(0, 3, 1, 2) - model[2].weight).abs().max() < 1e-12).item()
    shares = branch_shares(model)
    assert list(shares) == ['0.kernel.stages.0', '0.kernel.stages.1', '0.kernel.stages.2', '2.kernel', '4.kernel']
    assert shares['2.kernel']['freq'] == 0 and list(shares['4.kernel']) == ['origin', 'sequence']
    assert shares['2.kernel']['point'] == pytest.approx((parts['point'].norm() / model[2].weight.norm()).item())


@pytest.mark.parametrize('threshold', [0.0, 0.5])
def test_outputs_stay(threshold):
    model, x = network().eval(), torch.randn(2, 3, 33, 30, dtype=torch.float64)
    expected, shares, before = model(x), branch_shares(model), dict(model.named_parameters())
    assert orepa_mm.prune_branches(model, threshold) is model
    assert (model(x) - expected).abs().max() < 1e-10 * expected.abs().max()
    for path, each in shares.items():
        kernel = model.get_submodule(path)
        assert kernel.branches == tuple(name for name in each if name == 'origin' or each[name] >= threshold)
        assert kernel.scale.shape[0] == len(kernel.branches)
    stay = [name for name in dict(model.named_parameters()) if not name.endswith('scale')]
    assert all(dict(model.named_parameters())[name] is before[name] for name in stay)
    assert (len(before) > len(dict(model.named_parameters()))) == (threshold > 0)
    plain = orepa_mm.reparameterize(model)
    assert (plain(x) - expected).abs().max() < 1e-10 * expected.abs().max()


def test_a_pruned_state_dict_loads_into_the_whole_model():
    pruned, whole = orepa_mm.prune_branches(network(), 0.5), network()
    whole.load_state_dict(pruned.state_dict())
    for a, b in zip(pruned[::2], whole[::2], strict=True):
        assert (a.weight - b.weight).abs().max() < 1e-10 * a.weight.abs().max()


def test_only_the_branches_that_are_named_go():
    model = network()
    before = {path: kernel.branches for path, kernel in kernels_with_branches(model)}
    drop_branches(model, {'2.kernel': ['avg', 'point'], 'somewhere.else': ['avg']})
    after = {path: kernel.branches for path, kernel in kernels_with_branches(model)}
    assert after == before | {'2.kernel': tuple(name for name in before['2.kernel'] if name not in ('avg', 'point'))}


def test_names_may_come_from_an_iterator():
    kernel = OREPAConv2d(4, 4, 3).kernel
    kernel.drop_branches(iter(['avg', 'freq']))
    assert kernel.branches == ('origin', 'sequence', 'point', 'separable')
    stem = OREPAConv2d(3, 8, 7, branches=iter(['origin', 'avg']))
    assert [stage.branches for stage in stem.kernel.stages] == 3 * [('origin', 'avg')]
    convs = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3))
    assert [type(layer) for layer in orepa_mm.expand(convs, kernel_sizes=iter([3]))] == [OREPAConv2d, nn.Conv2d, OREPAConv2d]


COMPUTING = {
    'pruning': lambda kernel: torch.nn.utils.prune.random_unstructured(kernel, 'origin', 0.5),
    'parametrization': lambda kernel: torch.nn.utils.parametrize.register_parametrization(kernel, 'avg', nn.Tanh()),
    'weight norm': lambda kernel: torch.nn.utils.parametrizations.weight_norm(kernel, 'point'),
}


@pytest.mark.parametrize('computing', COMPUTING)
def test_branches_that_are_computed_are_not_moved(computing):
    model = nn.Sequential(OREPAConv2d(4, 4, 3), OREPAConv2d(4, 4, 1))
    COMPUTING[computing](model[0].kernel)
    before = model(x := torch.randn(1, 4, 9, 9))
    with pytest.raises(PruneError, match=r'0\.kernel\.(origin|avg|point).*prune\.remove'):
        orepa_mm.prune_branches(model, 1)
    with pytest.raises(BranchesError, match=r'0\.kernel\.(origin|avg|point)" is computed'):
        orepa_mm.attach_branches(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert torch.equal(model(x), before)


@pytest.mark.parametrize('named', [False, True])
def test_names_in_an_optimizer_are_those_of_its_parameters(named):
    if named and digit_version(torch.__version__) < digit_version('2.6'):
        pytest.skip('torch 2.6 gave them names')
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    optimizer = torch.optim.SGD(model.named_parameters() if named else model.parameters(), lr=0.1, momentum=0.9)

    def check():
        parameters = dict(model.named_parameters())
        for group in optimizer.param_groups:
            assert len(group['params']) == len(parameters) and ('param_names' in group) is named
            assert all(parameters[name] is p for name, p in zip(group.get('param_names', ()), group['params'], strict=False))

    handle = orepa_mm.attach_branches(model, optimizer)
    model(torch.randn(1, 4, 9, 9)).sum().backward()
    optimizer.step()
    check()
    saved = optimizer.state_dict()
    (group,) = saved['param_groups']
    assert not named or set(group['param_names']) == set(dict(handle.training_form().named_parameters()))
    optimizer.load_state_dict(saved)
    check()
    handle.move_into_model()
    check()
    drop_branches_of(model, {'0.kernel': ['avg', 'point']}, [optimizer])
    check()
    optimizer.zero_grad()
    orepa_mm.attach_branches(model, optimizer)
    check()


class TestBadInput:
    @pytest.mark.parametrize('threshold', [-0.1, 1.5, float('nan')])
    def test_threshold(self, threshold):
        with pytest.raises(PruneError, match='between 0 and 1'):
            orepa_mm.prune_branches(network(), threshold)
        with pytest.raises(PruneError, match='between 0 and 1'):
            PruneBranchesHook(threshold, epoch=1)

    def test_pending_gradients(self):
        model = network()
        model(torch.randn(1, 3, 9, 9, dtype=torch.float64)).sum().backward()
        before = model.state_dict().keys()
        with pytest.raises(PruneError, match=r'gradients are pending \(0.kernel.stages.0'):
            orepa_mm.prune_branches(model, 0.5)
        assert model.state_dict().keys() == before

    def test_nothing_to_prune(self):
        with pytest.raises(PruneError, match='no branches'):
            orepa_mm.prune_branches(nn.Conv2d(3, 3, 3), 0.5)

    def test_the_plain_branch_stays(self):
        layer = OREPAConv2d(2, 2, 3)
        drop_branches(layer, dict(kernel=['origin', 'avg']))
        assert 'origin' in layer.kernel.branches and 'avg' not in layer.kernel.branches
        with pytest.raises(LayerError, match='origin, which stays'):
            layer.kernel.drop_branches(['origin'])

    @pytest.mark.parametrize('when', [{}, dict(epoch=1, iteration=2)])
    def test_when(self, when):
        with pytest.raises(PruneError, match='one of epoch and iteration'):
            PruneBranchesHook(0.1, **when)


@MODELS.register_module()
class PrunedNetwork(BaseModel):
    def __init__(self):
        super().__init__()
        self.layers = network(torch.float32)

    def forward(self, inputs, mode):
        return dict(loss=self.layers(inputs).square().mean())


NETWORK, HOOK = dict(type='PrunedNetwork'), dict(type='PruneBranchesHook', threshold=0.3)


@pytest.mark.parametrize('by_iterations', [False, True])
def test_a_run_goes_on_with_its_momentum_and_resumes(by_iterations, tmp_path):
    whole = run(NETWORK, HOOK, tmp_path / 'whole', 4, by_iterations)
    model, optimizer = whole.model, whole.optim_wrapper.optimizer
    kernel = model.layers[2].kernel
    assert 'freq' not in kernel.branches and kernel.freq is None and len(kernel.branches) < 6
    assert {id(p) for group in optimizer.param_groups for p in group['params']} == {id(p) for p in model.parameters()}
    assert all(optimizer.state[p]['momentum_buffer'].shape == p.shape for p in model.parameters())
    ema = next(hook for hook in whole.hooks if type(hook).__name__ == 'EMAHook').ema_model.module
    assert {name: p.shape for name, p in ema.named_parameters()} == {name: p.shape for name, p in model.named_parameters()}

    loaded = built(NETWORK, HOOK, tmp_path / 'loaded', 4, by_iterations)
    loaded.hooks[:] = [hook for hook in loaded.hooks if isinstance(hook, PruneBranchesHook)]  # as in a test, which builds no optimizer
    loaded.load_checkpoint(last_checkpoint(tmp_path / 'whole'))
    assert loaded.model.layers[2].kernel.branches == kernel.branches

    check_resuming(whole, NETWORK, HOOK, tmp_path / 'parts', by_iterations)


@MODELS.register_module()
class NetworkToAttach(PrunedNetwork):
    def __init__(self):
        super().__init__()
        orepa_mm.reparameterize(self)


def run_beside(work_dir: Path, epochs: int, by_iterations: bool, resume: bool = False, **options) -> Runner:
    """A run that prunes branches beside the optimizer."""
    checkpoint = dict(type='CheckpointHook', interval=1, by_epoch=not by_iterations)
    hooks = dict(checkpoint=checkpoint, branches=dict(type='BranchesHook') | options)
    return run(dict(type='NetworkToAttach'), HOOK, work_dir, epochs, by_iterations, resume, default_hooks=hooks)


@pytest.mark.parametrize('by_iterations', [False, True])
def test_a_run_prunes_branches_beside_the_optimizer_and_resumes(by_iterations, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(prune_branches_hook, 'print_log', lambda line, logger: lines.append(line))
    whole = run_beside(tmp_path / 'whole', 4, by_iterations)
    updates = attached_to(whole.optim_wrapper.optimizer).updates
    gone = 6 + 2 - sum(len(update.kernel.branches) for update in updates)  # the stem has too few channels for branches
    assert gone > 3 and lines == [f'PruneBranchesHook: {gone} branches of 2 kernels added less than 0.3.']
    run_beside(tmp_path / 'parts', 3, by_iterations)
    resumed = run_beside(tmp_path / 'parts', 4, by_iterations, resume=True)
    again = attached_to(resumed.optim_wrapper.optimizer).updates
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for update, other in zip(updates, again, strict=True):
        for (name, a), (its, b) in zip(update.kernel.named_parameters(), other.kernel.named_parameters(), strict=True):
            momenta = [runner.optim_wrapper.optimizer.state[p]['momentum_buffer'] for runner, p in ((whole, a), (resumed, b))]
            assert name == its and torch.equal(a, b) and torch.equal(*momenta)


def test_a_run_with_nothing_to_prune_beside_the_optimizer(tmp_path):
    """Convolutions with fixed scales are one kernel to SGD: dropping branches would only change how it trains."""
    with pytest.raises(PruneError, match='nothing to prune'):
        run_beside(tmp_path, 4, False, branches='light', scales='fixed', kernel_sizes=(1, 3))


def test_what_pruning_beside_the_optimizer_names():
    model = nn.Sequential(OREPAConv2d(3, 4, 3, branches=('avg', 'point')), nn.ReLU(), OREPAConv2d(4, 4, 3), OREPAConv2d(4, 4, 7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = orepa_mm.attach_branches(model, optimizer)
    gone = handle.prune(0.3)
    kernels = [update.kernel for update in handle.updates]
    assert list(gone) == ['0', '2', '3.stages.0', '3.stages.1', '3.stages.2']
    assert gone['0'] == [] and 'freq' in gone['2']  # without a plain branch none can go
    assert kernels[0].branches == ('avg', 'point') and not set(gone['2']) & set(kernels[1].branches)


def test_momentum_of_the_scales_that_stay(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(1, 3, 9, 9, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    kernel = model[2].kernel
    before, names = optimizer.state[kernel.scale]['momentum_buffer'].clone(), kernel.branches
    runner = type('Runner', (), dict(model=model, hooks=[], optim_wrapper=OptimWrapper(optimizer)))()
    hook = PruneBranchesHook(0.5, epoch=0)
    runner.epoch = 0
    hook.before_train_epoch(runner)
    after = optimizer.state[kernel.scale]['momentum_buffer']
    assert torch.equal(after, before[[names.index(name) for name in kernel.branches]]) and len(after) < len(before)


def test_the_plot_of_what_branches_do(tools, tmp_path):
    checkpoint, out = save_weights(config('classifier'), tmp_path / 'weights.pth'), tmp_path / 'branches.png'
    status, error = tools.run('tools/analysis_tools/plot_branches', path_of('classifier'), checkpoint, out)
    assert status == 0, error
    with Image.open(out) as picture:
        assert picture.size[0] > 1000 and len(picture.convert('RGB').getcolors(1 << 20)) > 50
