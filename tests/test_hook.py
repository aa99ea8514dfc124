"""ReparameterizeHook in real runners."""

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from orepa_mm.engine import reparameterize_hook
from orepa_mm.engine.orepa_hook import OREPAHook
from orepa_mm.engine.reparameterize_hook import ReparameterizeHook
from orepa_mm.errors import NotFiniteError, ReparameterizeError
from orepa_mm.layers import SqueezedConv2d


def build_runner(mini_data, work_dir, hooks=(), **changes) -> Runner:
    cfg = Config.fromfile(ROOT / 'configs/imagenet/orepa-resnet18-w16_imagenet-mini.py')
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=5, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(mini_data / 'imagenet-mini')
    cfg.train_cfg.update(max_epochs=2, val_interval=1)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    cfg.custom_hooks = list(hooks)
    del cfg.default_hooks.orepa
    cfg.work_dir = str(work_dir)
    cfg.randomness = dict(seed=0)
    cfg.experiment_name = work_dir.name
    cfg.merge_from_dict(changes)
    return Runner.from_cfg(cfg)


@HOOKS.register_module(force=True)
class Witness(Hook):
    """Counts how many layers compute their branches in each batch, and saves a checkpoint behind it."""

    forwards = 0

    def __init__(self):
        self.seen = []

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        Witness.forwards = 0

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append(Witness.forwards)
        runner.save_checkpoint(runner.work_dir, f'during_{batch_idx}.pth', save_optimizer=False)


@pytest.mark.parametrize('averaged', [False, True])
def test_training_with_and_without_the_hook_is_bit_identical(averaged, mini_data, tmp_path, monkeypatch):
    """With averages they are what is tested, and checkpoints hold both."""
    forward = SqueezedConv2d.forward

    def counted(layer, input):
        Witness.forwards += 1
        return forward(layer, input)

    monkeypatch.setattr(SqueezedConv2d, 'forward', counted)
    ema = [dict(type='EMAHook', momentum=0.5)] if averaged else []
    states, scores = [], []
    for name, hooks in (('with', [*ema, dict(type='ReparameterizeHook', val=True), dict(type='Witness')]), ('without', ema)):
        runner = build_runner(mini_data, tmp_path / name, hooks)
        modules = [id(module) for module in runner.model.modules()]
        runner.train()
        assert [id(module) for module in runner.model.modules()] == modules
        checkpoint = torch.load(tmp_path / name / 'epoch_2.pth', weights_only=False)
        momenta = {f'{i}.{key}': value for i, each in checkpoint['optimizer']['state'].items() for key, value in each.items()}
        saved = [checkpoint['state_dict'], checkpoint.get('ema_state_dict', {}), momenta]
        states.append({f'{i}.{key}': value for i, state in enumerate([runner.model.state_dict(), *saved]) for key, value in state.items()})
        scores.append(runner.message_hub.get_scalar('val/accuracy/top1').current())
        if name == 'with':  # the first batch runs in training form and compares, the others run in deployed form
            assert next(hook for hook in runner.hooks if isinstance(hook, Witness)).seen == [17, 0, 17, 0]
            during = torch.load(tmp_path / name / 'during_1.pth', weights_only=False)['state_dict']
            assert during.keys() == checkpoint['state_dict'].keys()
    assert states[0].keys() == states[1].keys() and any('module.' in key for key in states[0]) == averaged
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert scores[0] == scores[1]


@HOOKS.register_module(force=True)
class Failing(Hook):
    """Raises behind the first batch of a test, or while the second runs."""

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.work_dir.endswith('forward') and batch_idx == 0:
            self.handle = runner.model.head.register_forward_pre_hook(self.interrupt)
        else:
            raise KeyboardInterrupt

    def interrupt(self, *args):
        self.handle.remove()
        raise KeyboardInterrupt


@pytest.mark.parametrize(('where', 'then'), [('forward', 'train'), ('hook', 'train'), ('hook', 'val'), ('hook', 'own')])
def test_a_test_that_was_interrupted_leaves_nothing_behind(where, then, mini_data, tmp_path):
    runner = build_runner(mini_data, tmp_path / where, [dict(type='ReparameterizeHook'), dict(type='Failing')])
    runner.register_hook(HOOKS.build(dict(type='AtomicCheckpointHook', save_best='auto')))
    before = [id(m) for m in runner.model.modules()]
    state = {key: value.clone() for key, value in runner.model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        runner.test()
    if then == 'train':
        runner.train()
        held = {id(p) for group in runner.optim_wrapper.optimizer.param_groups for p in group['params']}
        assert held == {id(p) for p in runner.model.parameters()}
        after = runner.model.state_dict()
        kernels = [key for key in state if '.kernel.' in key]
        assert kernels and not any(torch.equal(state[key], after[key]) for key in kernels)
    elif then == 'val':
        assert 'accuracy/top1' in runner.val()
    else:  # a loop of somebody's own, and be it with frozen norms
        runner.model.backbone(torch.randn(1, 3, 64, 64))[0].sum().backward()
        assert all(p.grad is not None for p in runner.model.backbone.parameters())
    assert [id(m) for m in runner.model.modules()] == before


def test_it_logs_layers_parameters_and_difference_and_refuses_weights_that_are_not_finite(mini_data, tmp_path):
    runner = build_runner(mini_data, tmp_path / 'run', [dict(type='ReparameterizeHook')])
    metrics = runner.test()
    hook = next(hook for hook in runner.hooks if isinstance(hook, ReparameterizeHook))
    assert 0 <= hook.difference < 1e-5
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert all(words in log for words in ('Re-parameterized 17 layers', 'parameters before', 'largest difference of a layer'))
    assert 'did not reach' not in log
    plain = build_runner(mini_data, tmp_path / 'plain', [])
    plain.model.load_state_dict(runner.model.state_dict())
    assert plain.test() == pytest.approx(metrics)
    with torch.no_grad():
        runner.model.backbone.layer1[0].conv1.kernel.pointwise[0] = float('nan')
    with pytest.raises(RuntimeError, match=r'"backbone\.layer1\.0\.conv1" gives values that are not finite'):
        runner.test()


def test_a_wrong_layer_is_found_and_named(mini_data, tmp_path, monkeypatch):
    plan = reparameterize_hook.plan_swaps

    def faulty(model):
        swaps = plan(model)
        swap = next(swap for swap in swaps if swap.path == 'backbone.layer3.0.conv2')
        with torch.no_grad():
            swap.new.weight[0, 0, 0, 0] += 0.1 * swap.new.weight.abs().max()
        return swaps

    monkeypatch.setattr(reparameterize_hook, 'plan_swaps', faulty)
    with pytest.raises(ReparameterizeError, match=r'"backbone\.layer3\.0\.conv2" differs from its training form'):
        build_runner(mini_data, tmp_path / 'run', [dict(type='ReparameterizeHook')]).test()


@pytest.mark.slow
def test_a_training_compiled_by_mmengine(mini_data, tmp_path):
    """``compile=True`` of a config; aot_eager traces as the default backend does, without a C++ compiler."""
    weights = []
    for name, options in (('compiled', dict(backend='aot_eager')), ('eager', False)):
        changes = {'compile': options, 'train_cfg.max_epochs': 1}
        runner = build_runner(mini_data, tmp_path / name, [dict(type='ReparameterizeHook')], **changes)
        runner.train()
        assert 'Re-parameterized 17 layers' in next((tmp_path / name).glob('*/*.log')).read_text()
        weights.append(torch.cat([p.detach().flatten() for p in runner.model.parameters()]))
    assert not torch.equal(*weights)  # it was compiled
    assert ((weights[0] - weights[1]).abs().max() / weights[1].abs().max()).item() < 1e-3  # float32 through steps behind batch norms


@HOOKS.register_module(force=True)
class Ending(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        raise ZeroDivisionError


@pytest.mark.parametrize('how', ['method', 'conv_cfg'])
def test_a_model_without_branches_is_in_deployed_form(how, mini_data, tmp_path):
    changes = {'model.backbone.method': 'none'} if how == 'method' else {'model.backbone.conv_cfg': dict(type='Conv2d')}
    hooks = [dict(type='ReparameterizeHook'), dict(type='Ending')]
    runner = build_runner(mini_data, tmp_path / 'run', hooks, **changes, **{'model.backbone.init': None})
    assert runner.test()
    log = next((tmp_path / 'run').glob('*/*.log'))
    assert log.read_text().count('in deployed form already') == 1
    with pytest.raises(ZeroDivisionError):
        runner.train()
    assert log.read_text().count('in deployed form already') == 2  # and not after the first epoch


@pytest.mark.parametrize('names', ['backbone', ['backbone.layer1', 'head']])
def test_efficient_norms_pass_over_layers_with_branches(names, mini_data, tmp_path):
    runner = build_runner(mini_data, tmp_path / 'run', [dict(type='ReparameterizeHook'), dict(type='CheckHook')])
    runner.cfg.efficient_conv_bn_eval = names
    runner.cfg.train_cfg.max_epochs = 1
    runner.train()
    assert 'efficient_conv_bn_eval passes over' in next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert runner.cfg.efficient_conv_bn_eval == ([] if names == 'backbone' else ['head'])


@pytest.mark.parametrize('single', [None, 'ReparameterizeHook', 'OREPAHook'])
def test_one_hook_beside_others_of_its_kind(single, mini_data, tmp_path):
    """A hook that a config has by itself takes the place of that part, and of two OREPAHooks the first acts."""
    hooks = [dict(type=single, tolerance=0.5)] if single else []
    runner = build_runner(mini_data, tmp_path / 'run', hooks, **{'default_hooks.orepa': dict(type='OREPAHook', tolerance=0.4)})
    whole = next(hook for hook in runner.hooks if isinstance(hook, OREPAHook))
    used = runner.hooks[[type(hook).__name__ for hook in runner.hooks].index(single)] if single == 'ReparameterizeHook' else whole.parts[0]
    runner.train_loop._max_epochs = 1
    runner.train()
    found = [part for hook in runner.hooks for part in getattr(hook, 'parts', [hook]) if getattr(part, 'difference', None) is not None]
    assert found == [used] and not any('forward' in vars(module) for module in runner.model.modules())
    log = next((tmp_path / 'run').rglob('*.log')).read_text()
    assert log.count('Re-parameterized') == 1 and f'tolerance {used.tolerance:.0e}' in log and not runner.model._forward_hooks
    saved = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=False)
    assert saved['meta']['names_in_optimizers']  # of CheckHook


def test_one_hook_ends_a_run_whose_loss_is_not_finite(mini_data, tmp_path):
    runner = build_runner(mini_data, tmp_path / 'run', **{'default_hooks.orepa': dict(type='OREPAHook')})
    runner.call_hook('before_train')
    runner.model.train()(torch.full((2, 3, 32, 32), float('inf')))
    with pytest.raises(NotFiniteError):
        runner.call_hook('after_train_iter', batch_idx=0)
