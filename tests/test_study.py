"""Studies: what a study file may say, the choice of learning rates, the statistics, and runs that fail, stop and go on."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import prepare_classes
import pytest
import runs as runs_module
import study as study_module
import torch
from conftest import ROOT, done, refused
from mmengine.config import Config
from runs import Run, Runs, append_record, read_records, run_of
from study import Plan, chosen_rates, claim, read_study
from study_report import cells, frame

from orepa_mm.deploy.loading import build_model, load_model
from orepa_mm.errors import UsageError
from orepa_mm.files import save

COMPARE = '.dev_scripts/studies/compare_methods'
BASE = f"""
_base_ = '{ROOT}/configs/imagenet/orepa-resnet18-w16_imagenet-mini.py'
model = dict(backbone=dict(init=None))
custom_hooks = [dict(type='CheckHook')]
train_dataloader = dict(batch_size=10, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=4, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1))
"""
STUDY = """
config = 'base.py'
data_root = 'data/imagenet-mini'
metric = 'accuracy/top1'
baseline = 'none'
methods = {'none': {'model.backbone.method': 'none'}, 'OREPA light': {'model.backbone.branches': 'light'}}
learning_rates = (0.01, 0.05)
lr_seeds = 1
seeds = 2
"""


@pytest.fixture
def write(tmp_path):
    """Writes a study file, and its config beside it."""

    def written(text: str = STUDY) -> Path:
        (tmp_path / 'base.py').write_text(BASE)
        (tmp_path / 'tiny.py').write_text(text)
        return tmp_path / 'tiny.py'

    return written


# Statistics


def record(method: str, seed: int, value: float | None, lr: float = 0.1, **more) -> dict:
    found = dict(metrics={'m': value}, seconds=30.0, cpu_seconds=10.0, memory_mib=100.0, gpu_memory_mib=None)
    outcome = dict(error='broke', seconds=1.0) if value is None else found
    return dict(run=f'{method}/{lr}/{seed}', method=method, seed=seed, lr=lr, resumed=False, versions=dict(torch='2'), **outcome) | more


def test_differences_are_paired_by_seed(write):
    text = STUDY.replace('accuracy/top1', 'm').replace("'none': {", "'a': {}, 'c': {}, 'b': {").replace("= 'none'", "= 'a'")
    study = read_study(write(text))
    records = [record('a', seed, value) for seed, value in enumerate((50.0, 60.0, 70.0, None))]
    records += [record('b', seed, value) for seed, value in ((3, 90.0), (2, 71.5), (0, 51.0), (1, None))]
    records[0]['resumed'], records[1]['gpu_memory_mib'] = True, 5.0
    a, b, c = (cells(study, frame(study, records), dict(a=0.01, b=0.05), method) for method in 'abc')
    assert a == ('a', '0.01', '3', '60.00', '10.00', '-', '-', '20', 'FAILED: seed 3; learning rate at the end of the range')
    assert b[2] == '3' and b[5:7] == ('+1.25', '-1.93 to +4.43') and 'FAILED: seed 1' in b[-1]  # of seeds 0 and 2
    assert c[1:8] == ('-', '0', *'-----') and 'not tried yet' in c[-1]


def test_a_report_is_made_of_the_records_alone(write, tmp_path, tools):
    """Of those that the study asks for: others of another seed, of a rate that was not chosen and of another method are left out."""
    curve = [dict(step=step, **{'accuracy/top1': 10.0 * step}) for step in (1, 2)]

    def run(phase: str, method: str, seed: int, value: float, lr: float) -> dict:
        metrics = {'accuracy/top1': value}
        return record(method, seed, value, lr, phase=phase, metrics=metrics, validations=curve) | dict(run=f'{phase}/{method}/{lr}/{seed}')

    records = [run('choose', method, 1000, 60 + lr, lr) for method in ('none', 'OREPA light') for lr in (0.01, 0.05)]
    records += [run('compare', 'none', seed, 61.0 + seed, 0.05) for seed in (0, 1, 2)]
    records += [run('compare', 'OREPA light', seed, 63.0 + 2 * seed, 0.05) for seed in (0, 1, 2)]
    records += [run('compare', 'none', 0, 10.0, 0.01), run('compare', 'other', 0, 10.0, 0.05), run('choose', 'none', 1001, 99.0, 0.01)]
    for each in records:
        append_record(tmp_path, each)

    def report(out: str, *options: str) -> list[list[str]]:
        done(tools.run(COMPARE, write(), '--report', tmp_path / 'runs.jsonl', '--out', tmp_path / out, *options))
        lines = (tmp_path / out / 'table.md').read_text().splitlines()
        return [[cell.strip() for cell in line.split('|')][1:] for line in lines if line.startswith(('| none', '| OREPA'))]

    none, light = report('all')
    assert none[:5] == ['none', '0.05', '2', '61.50', '0.71'] and light[:4] == ['OREPA light', '0.05', '2', '64.00']
    assert light[5] == '+2.50' and none[7] == '10'  # seconds of the processor, not of the clock
    assert {path.name for path in (tmp_path / 'all').glob('*.png')} == {'study.png', 'rates.png', 'progress.png'}
    assert report('turned', '--baseline', 'OREPA light')[0][5] == '-2.50' and len(report('some', '--methods', 'none')) == 1
    for options, words in ((('--methods', 'nothing'), "no method 'nothing'"), (('--report', 'none.jsonl'), 'no such file')):
        refused(tools.run(COMPARE, write(), *options, '--out', tmp_path / 'x'), words)
        assert not (tmp_path / 'x').exists()


# Records


def test_a_line_that_was_cut_is_no_record_and_spoils_none(tmp_path):
    append_record(tmp_path, record('a', 0, 1.0))
    with (tmp_path / 'runs.jsonl').open('a') as file:
        file.write('{"run": "a/0.1/1", "met')
    assert list(read_records(tmp_path / 'runs.jsonl')) == ['a/0.1/0']
    append_record(tmp_path, record('a', 2, 3.0))
    append_record(tmp_path, record('a', 0, 2.0))
    assert {name: each['metrics']['m'] for name, each in read_records(tmp_path / 'runs.jsonl').items()} == {'a/0.1/0': 2.0, 'a/0.1/2': 3.0}


# Study files


def test_what_a_study_file_says(write, tmp_path):
    (write().parent / 'base.py').write_text(BASE + "test_dataloader = dict(dataset=dict(split='test'))\n")
    study = read_study(tmp_path / 'tiny.py', tmp_path, seeds=3)
    assert (study.name, study.seeds, study.total) == ('tiny', 3, 2 * (2 + 3))
    plan = Plan(study, tmp_path / 'out')
    choosing, comparing = plan.choosing(), plan.comparing({'none': 0.05, 'OREPA light': 0.01})
    assert {run.labels['seed'] for run in choosing}.isdisjoint(run.labels['seed'] for run in comparing)
    chosen, cfg = (Config.fromstring(run.config, '.py') for run in (choosing[0], comparing[1]))
    assert (chosen.test_dataloader.dataset.split, cfg.test_dataloader.dataset.split) == ('val', 'test')  # rates never see the test part
    assert cfg.model.backbone.branches == 'light' and cfg.optim_wrapper.optimizer.lr == 0.01 and cfg.randomness.seed == 0
    assert cfg.train_dataloader.dataset.data_root == f'{tmp_path}/' and cfg.custom_hooks == [dict(type='CheckHook')]


def test_folds_go_with_the_seeds_in_turn(write, tmp_path):
    folds = [{'train_dataloader.batch_size': size} for size in (3, 4)]
    plan = Plan(read_study(write(STUDY + f'folds = {folds}\n'), seeds=3), tmp_path)
    runs = [Config.fromstring(run.config, '.py') for run in (*plan.comparing({'none': 0.05}), plan.choosing()[0])]
    assert [cfg.train_dataloader.batch_size for cfg in runs] == [3, 4, 3, 3]


@pytest.mark.parametrize(
    ('old', 'new', 'words'),
    [
        ("baseline = 'none'", "baseline = 'nine'", "baseline 'nine' is not among the methods"),
        ('\nseeds = 2', '\nseeds = 1', 'seeds=1: an interval takes at least 2'),
        ("metric = 'accuracy/top1'", '', "missing 1 required positional argument: 'metric'"),
        ("'base.py'", "'absent.py'", 'absent.py'),
        ('\nseeds = 2', '\nseed = 2', "unexpected keyword argument 'seed'"),
        ("'OREPA light'", "'no!': {}, 'no?'", 'same letters'),
        ("'light'", "'pretrained:big'", 'pretrained:big is not among the pretrained'),
        ('\nseeds = 2', "\npretrained = dict(a=dict(expand={}, of='b'))", 'pretrained:b is not among'),
    ],
)
def test_what_a_study_file_cannot_say(write, old, new, words):
    assert old in STUDY
    with pytest.raises(UsageError, match=re.escape(words)):
        read_study(write(STUDY.replace(old, new, 1)))


def test_unknown_method_of_the_backbone_and_unknown_setting(write, tmp_path):
    study = read_study(write(STUDY.replace("'model.backbone.method': 'none'", "'model.backbone.method': 'OREPPA'")))
    with pytest.raises(UsageError, match=r"method 'none' cannot be built: .*OREPPA.* unknown"):
        study_module.check(study, Plan(study, tmp_path))
    with pytest.raises(UsageError, match='cannot be set'):
        run_of(study.config, {'train_pipeline.9.scale': 3}, 'x', test_on='test')


def test_the_best_learning_rate_by_the_mean(write):
    study = read_study(write(STUDY.replace('accuracy/top1', 'm')))
    light = 'OREPA light'
    records = [record('none', 1, 5.0, 0.01), record('none', 2, 5.0, 0.01), record('none', 1, 9.0, 0.05), record('none', 2, 2.0, 0.05)]
    records += [record(light, 1, 1.0, 0.01), record(light, 1, 9.0, 0.05), record(light, 2, None, 0.05)]
    assert chosen_rates(study, records) == {'none': 0.05, light: 0.01}
    assert chosen_rates(study, [record('none', 1, None, lr) for lr in (0.01, 0.05)]) == {}
    with pytest.raises(UsageError, match='metric m: .* has other'):
        chosen_rates(study, [record('none', 1, 5.0, 0.01, metrics=dict(other=1.0))])


@pytest.mark.parametrize('path', sorted((ROOT / '.dev_scripts/studies/files').glob('*.py')), ids=lambda path: path.stem)
def test_the_studies_here(path, tmp_path):
    study = read_study(path, tmp_path)
    plan = Plan(study, tmp_path / 'out')
    assert len(study.learning_rates) == 1 or max(study.learning_rates) > 5 * min(study.learning_rates)
    runs = [*plan.choosing(), *plan.comparing(dict.fromkeys(study.methods, 0.1))]
    assert len({run.name for run in runs}) == len(runs) == study.total - sum('expand' not in each for each in study.pretrained.values())
    assert not [run.name for run in runs if "'data/" in run.config or "'pretrained:" in run.config]


# Runs, with programs that take no time in the place of tools/train.py and tools/test.py

TRAIN = """
import os, pathlib, sys, time
config, work = sys.argv[1], pathlib.Path(sys.argv[3])
text = pathlib.Path(config).read_text()
with open(work / 'calls', 'a') as file: file.write('--resume' if '--resume' in sys.argv else 'new'); file.write('\\n')
(work / 'last_checkpoint').write_text('/elsewhere/last.pth')
if 'slow' in text and '--resume' not in sys.argv: time.sleep(60)
if 'broken' in text: sys.exit('error: it broke')
(work / 'now' / 'vis_data').mkdir(parents=True)
(work / 'now' / 'vis_data' / 'scalars.json').write_text('{"m": 5.0, "time": 0.1, "step": 1}\\n')
print(os.environ['OMP_NUM_THREADS'])
"""
TEST = """
import pathlib, sys
work = pathlib.Path(sys.argv[2]).parent
assert sys.argv[2].endswith('last.pth') and work.is_dir()
pathlib.Path(sys.argv[sys.argv.index('--metrics') + 1]).write_text('{"m": 7.0, "time": 0.1}')
"""


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / 'programs'
    folder.mkdir()
    (folder / 'train.py').write_text(TRAIN)
    (folder / 'test.py').write_text(TEST)
    monkeypatch.setattr(runs_module, 'TOOLS', folder)
    return folder


def test_a_failed_run_is_named_and_the_others_go_on(programs, tmp_path, capsys):
    out = tmp_path / 'out'
    asked = [Run(name, f'a = {name!r}\n', dict(seed=seed)) for seed, name in enumerate(('x/one', 'x/broken', 'x/two'))]
    with Runs(out, 2, 3) as runs:
        first = runs.carry_out(asked)
        with pytest.raises(UsageError, match='still going on'), Runs(out, 1, 1):
            pass
    assert [each.get('metrics') for each in first] == [dict(m=7.0), None, dict(m=7.0)] and [each['seed'] for each in first] == [0, 1, 2]
    assert first[1]['error'].startswith('it broke') and first[0]['memory_mib'] > 1
    assert first[0]['validations'] == [dict(m=5.0, step=1)] and first[0]['gpu_memory_mib'] is None and first[0]['cpu_seconds'] > 0
    assert 'x/broken: FAILED: it broke' in capsys.readouterr().out
    with Runs(out, 1, 3) as runs:
        again = runs.carry_out([*asked[:1], Run('x/broken', 'a = "mended"\n', {}), *asked[2:]])
    assert again[0] == first[0] and again[2] == first[2] and again[1]['metrics'] == dict(m=7.0)
    assert runs.work_dir(asked[0]).joinpath('calls').read_text() == 'new\n'
    with pytest.raises(UsageError, match='x--two.py has other settings'), Runs(out, 1, 3) as runs:
        runs.carry_out([Run('x/new', 'a = 1\n', {}), Run('x/two', 'a = 2\n', {})])
    assert len(read_records(out / 'runs.jsonl')) == 3 and not runs.work_dir(Run('x/new', '', {})).exists()


def test_an_interruption_ends_what_runs_and_the_next_start_resumes_it(programs, tmp_path):
    out, asked = tmp_path / 'out', [Run('fast', 'a = 1\n', {}), Run('slow', 'a = "slow"\n', {})]

    def interrupt(_record):
        deadline = time.monotonic() + 30
        while not (out / 'runs' / 'slow' / 'last_checkpoint').exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), Runs(out, 2, 2, interrupt) as runs:
        runs.carry_out(asked)
    assert list(read_records(out / 'runs.jsonl')) == ['fast']
    with Runs(out, 2, 2) as runs:
        fast, slow = runs.carry_out(asked)
    assert slow['resumed'] and not fast['resumed']
    assert (out / 'runs' / 'slow' / 'calls').read_text() == 'new\n--resume\n'


def test_pretrained_networks_with_branches(write, tmp_path):
    """The checkpoint with branches is of the same network, and a method's config loads it."""
    text = STUDY.replace("'model.backbone.branches': 'light'", "'model.backbone.init_cfg.checkpoint': 'pretrained:branches'")
    expand = "dict(of='plain', expand=dict(kernel_sizes=(3,), start='shared'))"
    text += f"pretrained = dict(plain=dict(config='base.py', options={{'model.backbone.method': 'none'}}), branches={expand})\n"
    study = read_study(write(text))
    plan, plain = Plan(study, tmp_path / 'out'), Config.fromfile(tmp_path / 'base.py')
    plain.model.backbone.method = 'none'
    model = build_model(plain).eval()
    run = plan.pretraining('plain')
    with Runs(tmp_path / 'out', 1, 1) as runs:
        runs.records[run.name] = dict(metrics={})
        runs.config_path(run).parent.mkdir()
        runs.config_path(run).write_text(run.config)
        work_dir = runs.work_dir(run)
        save(dict(state_dict=model.state_dict()), work_dir / 'last.pth')
        (work_dir / 'last_checkpoint').write_text(str(work_dir / 'last.pth'))
        study_module.pretrain(plan, runs)
        shutil.rmtree(work_dir)  # as one who needs the space: the checkpoint is kept, nothing is trained again
        study_module.pretrain(plan, runs)
    cfg = Config.fromstring(plan.choosing()[2].config, '.py')
    assert cfg.model.backbone.init_cfg.checkpoint == str(plan.checkpoint('branches'))
    cfg.model.backbone.plain_stem = True
    expanded = load_model(cfg, plan.checkpoint('branches'))
    assert any('.kernel.' in key for key in expanded.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = model(x), expanded(x)
    assert ((found[0] - expected[0]).abs().max() / expected[0].abs().max()).item() < 1e-5  # float32


def test_a_folder_of_another_study(write, tmp_path):
    study, out = read_study(write()), tmp_path / 'out'
    out.mkdir()
    (out / 'runs.jsonl').touch()  # records that are gone on with
    claim(study, out)
    claim(study, out)
    (out / 'study.json').write_text('{"study": "large"}')
    with pytest.raises(UsageError, match="results of the study 'large'"):
        claim(study, out)
    with pytest.raises(UsageError, match='something else'):
        claim(study, tmp_path)


def test_what_a_study_refuses(write, tmp_path, tools):
    status, error = tools.run('.dev_scripts/studies/compare_methods', write(), '--jobs', '0', '--out', tmp_path / 'x')
    assert status == 2 and '--jobs 0: give at least 1' in error and not (tmp_path / 'x').exists()
    (tmp_path / 'broken.zip').write_bytes(b'PK')
    (tmp_path / 'empty').mkdir()
    for source, message in (('broken.zip', 'is no archive, or a broken one'), ('empty', 'no train/CLASS/IMAGE in it')):
        with pytest.raises(UsageError, match=message):
            prepare_classes.prepare(tmp_path / source, tmp_path / 'other', 1, 1)
    assert not (tmp_path / 'other').exists()


# Images


def test_classes_are_laid_out_in_three_parts(tmp_path):
    for part, count in dict(train=5, val=2).items():
        for label in 'ab':
            for number in range(count):
                path = tmp_path / 'source' / 'deep' / part / label / f'{number}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(f'{part}{label}{number}'.encode())
    out = tmp_path / 'out'
    assert prepare_classes.prepare(tmp_path / 'source', out, 3, 1) == 2 * (3 + 1 + 2)
    assert sorted(path.name for path in (out / 'train' / 'a').iterdir()) == ['0.png', '1.png', '2.png']
    assert (out / 'val/b/3.png').read_bytes() == b'trainb3' and (out / 'test/b/1.png').read_bytes() == b'valb1'
    with pytest.raises(UsageError, match='class a has 5 to train and 2 to test, needed: 6'):
        prepare_classes.prepare(tmp_path / 'source', tmp_path / 'other', 5, 1)
    with pytest.raises(UsageError, match='give a new folder'):
        prepare_classes.prepare(tmp_path / 'source', out, 3, 1)
    shutil.make_archive(str(tmp_path / 'packed'), 'zip', tmp_path / 'source')
    assert prepare_classes.prepare(tmp_path / 'packed.zip', tmp_path / 'unpacked', 3, 1) == 12 and not (tmp_path / 'other').exists()


# The whole


def start(path: Path, mini_data: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, '-W', 'ignore', f'{ROOT / COMPARE}.py', str(path), '--out', str(out)]
    command += ['--data', str(mini_data / 'imagenet-mini'), '--jobs', '2']
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def results(out: Path) -> list[list[str]]:
    """The table's cells without time."""
    lines = [line for line in (out / 'table.md').read_text().splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.split('|')][1:8] for line in lines]


@pytest.mark.slow
def test_a_study_that_is_stopped_ends_like_one_that_is_not(write, mini_data, tmp_path):
    path, out = write(), tmp_path / 'stopped'
    process = start(path, mini_data, out)
    compared = out / 'runs' / 'compare'
    while not list(compared.glob('*/*/*/last_checkpoint')):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.terminate()
    assert 'error: interrupted' in process.communicate()[0] and process.returncode == 130
    assert 4 <= len(read_records(out / 'runs.jsonl')) < 8
    for folder in (out, tmp_path / 'whole'):
        process = start(path, mini_data, folder)
        assert process.wait() == 0, process.communicate()[0]
    assert any(each['resumed'] for each in read_records(out / 'runs.jsonl').values())
    assert results(out) == results(tmp_path / 'whole') and len(results(out)) == 4
    for name, each in read_records(out / 'runs.jsonl').items():
        whole = read_records(tmp_path / 'whole' / 'runs.jsonl')[name]['validations']
        lost = 1 if each['resumed'] else 0  # the one between the last checkpoint and the stop
        assert len(whole) == 4 and len(each['validations']) >= 4 - lost and all(row in whole for row in each['validations'])
    assert all((out / name).is_file() for name in ('study.png', 'rates.png', 'progress.png'))
