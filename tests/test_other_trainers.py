"""Branches beside the optimizer in the loops of others: timm's tools, torchvision, ultralytics, Lightning, accelerate."""

import copy
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import few, same
from PIL import Image
from test_attach_branches import EXACT, OPTIMIZERS, apart, batches, loss_of, network, train
from torch import nn

from orepa_mm import attach_branches, expand, reparameterize
from orepa_mm.optim import attached_to


def attach_seeded(model: nn.Module, optimizer):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return attach_branches(model, optimizer)


# timm


def pair(model: nn.Module, optimizer_of):
    """The model with branches in it and the plain one with branches beside its optimizer, from the same seed."""
    inside, beside = copy.deepcopy(model), copy.deepcopy(model)
    torch.manual_seed(1)
    expand(inside)
    beside.load_state_dict(reparameterize(copy.deepcopy(inside).eval()).state_dict())  # so that they do not start a rounding apart
    optimizers = optimizer_of(inside), optimizer_of(beside)
    return inside, beside, *optimizers, attach_seeded(beside, optimizers[1])


@pytest.mark.parametrize('name', few(['resnet10t', 'mobilenetv3_small_050', 'convnext_atto'], 'mobilenetv3_small_050'))
def test_models_schedules_and_averages_of_timm(name):
    timm = pytest.importorskip('timm')
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import ModelEmaV3

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4).double()
    # No decay for what has one dimension, and learning rates by depth.
    settings = dict(opt='nesterov', lr=0.01, momentum=0.9, weight_decay=0.02, layer_decay=0.8)
    inside, beside, one, other, handle = pair(model, lambda model: create_optimizer_v2(model, **settings))
    assert len(other.param_groups) > 4 and len(handle.updates) > 10
    before = copy.deepcopy(beside)
    averages = [ModelEmaV3(each, decay=0.7) for each in (reparameterize(copy.deepcopy(inside)), beside)]
    schedules = [create_scheduler_v2(optimizer, 'cosine', num_epochs=4, warmup_epochs=1)[0] for optimizer in (one, other)]
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for step in range(4):
        for each, optimizer, schedule in ((inside, one, schedules[0]), (beside, other, schedules[1])):
            schedule.step(step + 1)
            optimizer.zero_grad()
            torch.manual_seed(step)  # dropped paths
            nn.functional.cross_entropy(each(x), torch.tensor([0, 3])).backward()
            optimizer.step()
        averages[0].update(reparameterize(copy.deepcopy(inside)))
        averages[1].update(beside)
    assert apart(before, beside) > 1e-3
    assert apart(inside, beside) < EXACT and apart(*(average.module for average in averages)) < EXACT


@pytest.mark.parametrize('name', ['lamb', 'lion', 'adan', 'adopt', 'madgrad', 'sgdw', 'adafactorbv', 'lars', 'muon', 'cadamw'])
def test_optimizers_of_timm(name):
    pytest.importorskip('timm')
    from timm.optim import create_optimizer_v2

    inside, beside, one, other, _ = pair(network(), lambda model: create_optimizer_v2(model, name, lr=1e-3, weight_decay=1e-2))
    before = copy.deepcopy(beside)
    train(inside, one, batches(10))
    train(beside, other, batches(10))
    assert apart(before, beside) > 1e-4
    assert apart(inside, beside) < 1e-7


# torchvision


def test_the_detection_reference_of_torchvision():
    """Its loop: a sum of losses, a warm-up for each step, then steps by epochs; the proposals that are drawn are the same."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    backbone.out_channels = 8
    small = dict(
        min_size=64, max_size=96, box_head=None, box_detections_per_img=5, rpn_post_nms_top_n_train=32, box_batch_size_per_image=16
    )
    small |= dict(rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)), box_roi_pool=MultiScaleRoIAlign(['0'], 3, 2))
    model = FasterRCNN(backbone, num_classes=3, **small).double().train()
    settings = dict(lr=0.01, momentum=0.9, weight_decay=1e-4)
    inside, beside, one, other, handle = pair(
        model, lambda model: torch.optim.SGD([p for p in model.parameters() if p.requires_grad], **settings)
    )
    assert {'backbone.0', 'rpn.head.conv.0.0'} <= {update.path for update in handle.updates}
    before = copy.deepcopy(beside)
    boxes = torch.tensor([[4.0, 6, 40, 44], [30, 20, 62, 60]], dtype=torch.float64)
    targets = [dict(boxes=boxes, labels=torch.tensor([1, 2])), dict(boxes=boxes[:1], labels=torch.tensor([2]))]
    for each, optimizer in ((inside, one), (beside, other)):
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3)
        for step in range(4):
            torch.manual_seed(step)
            losses = each([torch.rand(3, 64, 72, dtype=torch.float64), torch.rand(3, 80, 64, dtype=torch.float64)], targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            warmup.step()
    assert apart(before, beside) > 1e-3 and apart(inside, beside) < EXACT


# ultralytics


@pytest.fixture(scope='module')
def ultralytics(tmp_path_factory):
    """The library without its network: it finds its settings and its font in a folder of this test."""
    folder, threads = tmp_path_factory.mktemp('settings'), torch.get_num_threads()
    (folder / 'Ultralytics').mkdir()
    (folder / 'Ultralytics' / 'Arial.ttf').touch()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dict(CONFIG_DIR=folder, OFFLINE='true', AUTOINSTALL='false').items():
            patch.setenv(f'YOLO_{name}', str(value))
        yield pytest.importorskip('ultralytics')
    torch.set_num_threads(threads)


class Squares:
    """A narrow YOLOv8 for rectangles that fill a picture nearly, as its first guesses do: scores are not zero from the start."""

    def __init__(self, ultralytics, folder: Path) -> None:
        import yaml

        self.ultralytics, self.folder = ultralytics, folder
        generator = np.random.default_rng(0)
        for split, count in (('train', 16), ('val', 6)):
            for part in ('images', 'labels'):
                (folder / part / split).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 60, (64, 64, 3), dtype=np.uint8)
                w, h = generator.integers(52, 62, 2)
                x, y = generator.integers(0, 64 - w), generator.integers(0, 64 - h)
                pixels[y : y + h, x : x + w] = (40, 200, 250)
                Image.fromarray(pixels).save(folder / 'images' / split / f'{i}.png')
                box = ((x + w / 2) / 64, (y + h / 2) / 64, w / 64, h / 64)
                (folder / 'labels' / split / f'{i}.txt').write_text(' '.join(map(str, (0, *box))))
        self.data, self.model = folder / 'data.yaml', folder / 'narrow.yaml'
        self.data.write_text(yaml.safe_dump(dict(path=str(folder), train='images/train', val='images/val', names=['square'])))
        stock = yaml.safe_load((Path(ultralytics.__file__).parent / 'cfg/models/v8/yolov8.yaml').read_text())
        self.model.write_text(yaml.safe_dump(stock | dict(nc=1, scales=dict(n=[0.33, 0.0625, 1024]))))

    def train(self, name: str, callbacks: dict | None = None, model: Path | None = None, **options):
        """A run by its own trainer: warmup, two batches a step, an average of weights, clipping. Returns the finished trainer."""
        yolo = self.ultralytics.YOLO(str(model or self.model))
        for event, callback in (callbacks or {}).items():
            yolo.add_callback(event, callback)
        given = dict(epochs=2, imgsz=128, batch=4, nbs=8, mosaic=0.0, warmup_epochs=1.0, conf=1e-6, optimizer='SGD', lr0=0.02, seed=0)
        quiet = dict(workers=0, device='cpu', amp=False, plots=False, verbose=False, exist_ok=True)
        yolo.train(data=str(self.data), project=str(self.folder / 'runs'), name=name, **(given | quiet | options))
        return yolo.trainer


@pytest.fixture
def squares(ultralytics, tmp_path) -> Squares:
    return Squares(ultralytics, tmp_path)


def attach(trainer) -> None:
    attach_seeded(trainer.model, trainer.optimizer)


@pytest.mark.slow
@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
def test_a_run_of_ultralytics_saves_the_stock_network(squares, optimizer):
    saved, steps = [], []

    def count_steps(trainer):
        attach(trainer)
        trainer.optimizer.register_step_post_hook(lambda *_: steps.append(1))

    def keep(trainer):  # the end of the run strips the optimizer from the file
        saved.append(torch.load(trainer.last, weights_only=False)['optimizer'])

    plain = squares.train('plain', optimizer=optimizer)
    trainer = squares.train('branches', dict(on_train_start=count_steps, on_model_save=keep), optimizer=optimizer)
    assert [key for key, value in plain.model.named_parameters()] == [key for key, value in trainer.model.named_parameters()]
    updates = attached_to(trainer.optimizer).updates
    assert len(steps) >= 4 and len(saved) == 2 and len(updates) == len(saved[-1]['branches']) > 50
    start, end = (state['branches'] for state in saved)
    moved = [path for path in end if not any(torch.equal(start[path][name], end[path][name]) for name in end[path])]
    assert len(moved) > 40  # no gradient reaches the heads of scales that no object is assigned to
    for update in updates:
        assert (update.squeezed() - update.weight).abs().max() <= 1e-6 * update.weight.abs().max()
        assert not torch.equal(update.weight, plain.model.get_parameter(f'{update.path}.weight'))

    for weights in (trainer.best, trainer.last):
        assert b'orepa_mm' not in weights.read_bytes()  # which holds the pickled model
        model, fused = (squares.ultralytics.YOLO(weights) for _ in range(2))
        fused.fuse()
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.model.modules())
        x = torch.rand(1, 3, 128, 128)
        before, after = (each.model.eval()(x)[0] for each in (model, fused))
        assert (after - before).abs().max() < 1e-4 * before.abs().max()
    # The trainer has validated the best at the end.
    quiet = dict(imgsz=128, batch=8, workers=0, device='cpu', plots=False, conf=1e-6, project=str(squares.folder), name='val')
    found = squares.ultralytics.YOLO(trainer.best).val(data=str(squares.data), **quiet).results_dict
    assert found['metrics/mAP50(B)'] > 0.001
    for key, value in trainer.metrics.items():
        if key.startswith('metrics/'):
            assert found[key] == pytest.approx(value, abs=1e-4), key


@pytest.mark.slow
def test_ultralytics_resumes(squares, caplog):
    """From a trainer whose optimizer is built with branches: a callback comes after the file has been read."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Branches(DetectionTrainer):
        def build_optimizer(self, model, *args, **options):
            optimizer = super().build_optimizer(model, *args, **options)
            attach_branches(model, optimizer)
            return optimizer

    kept = squares.folder / 'kept.pt'

    def keep(trainer):
        if trainer.epoch == 0:
            kept.write_bytes(trainer.last.read_bytes())

    squares.train('first', dict(on_model_save=keep), trainer=Branches)
    caplog.set_level(logging.INFO, 'orepa_mm')
    caplog.clear()
    read = {}
    state = torch.load(kept, weights_only=False)['optimizer']['branches']

    def compare(trainer):
        kernels = {update.path: update.values() for update in attached_to(trainer.optimizer).updates}
        read['same'] = all(torch.equal(value, kernels[path][name]) for path, values in state.items() for name, value in values.items())

    trainer = squares.train('first', dict(on_train_start=compare), model=kept, resume=True, trainer=Branches)
    assert trainer.start_epoch == 1 and trainer.epoch == 1 and read['same']
    # What is resumed are the averaged weights, in half precision: other ones than those that trained.
    assert caplog.text.count('made anew') == 1
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        squares.train('late', dict(on_train_start=attach), model=kept, resume=True)


# Lightning


def plain_loop(data: list[torch.Tensor], epochs: int, accumulate: int = 1, clip: float | None = None, attached: bool = True) -> nn.Module:
    """What the loops of others are compared with."""
    model = network()
    optimizer = OPTIMIZERS['adamw'](model.parameters())
    if attached:
        attach_seeded(model, optimizer)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
    for _ in range(epochs):
        for start in range(0, len(data), accumulate):
            optimizer.zero_grad()
            for x in data[start : start + accumulate]:
                (loss_of(model, x) / accumulate).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
        schedule.step()
    return model


@pytest.fixture
def lightning():
    return pytest.importorskip('lightning.pytorch')


def fit(lightning, folder: Path, where: str, epochs: int, callbacks=(), resume: Path | None = None, **options):
    """Train a network on six batches an epoch; returns it. ``where`` branches are attached to the optimizer, if at all."""

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network()

        def training_step(self, batch, index):
            return loss_of(self.network, batch)

        def validation_step(self, batch, index):
            self.log('loss', loss_of(self.network, batch))

        def configure_optimizers(self):
            optimizer = OPTIMIZERS['adamw'](self.parameters())
            if where == 'configure_optimizers':
                attach_seeded(self, optimizer)
            return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])]

    class Attach(lightning.Callback):
        def on_fit_start(self, trainer, module):
            attach_seeded(module, module.optimizers())  # Lightning's wrapper

    quiet = dict(accelerator='cpu', logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    callbacks = [*callbacks, *([Attach()] if where == 'callback' else [])]
    module = Module()
    loaders = [torch.utils.data.DataLoader(data, batch_size=None) for data in (batches(6), batches(1, 7))]
    trainer = lightning.Trainer(max_epochs=epochs, default_root_dir=folder, callbacks=callbacks, **(quiet | options))
    trainer.fit(module, *loaders, ckpt_path=resume)
    return module.network


@pytest.mark.parametrize(
    ('where', 'accumulate', 'clip'),
    [('configure_optimizers', 1, None), ('callback', 1, None), ('configure_optimizers', 3, 1e-3)],
)
def test_lightning_trains_as_a_plain_loop(lightning, tmp_path, where, accumulate, clip):
    """A closure evaluates the gradients in the optimizer's step."""
    model = fit(lightning, tmp_path, where, epochs=2, accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    assert same(model, plain_loop(batches(6), 2, accumulate, clip))
    assert not same(model, plain_loop(batches(6), 2, accumulate, clip, attached=False))


@pytest.mark.parametrize('where', ['configure_optimizers', 'callback'])
def test_lightning_resumes(lightning, tmp_path, where):
    saver = lightning.callbacks.ModelCheckpoint(tmp_path, '{epoch}', save_top_k=-1)
    undisturbed = fit(lightning, tmp_path, where, epochs=3, callbacks=[saver], enable_checkpointing=True)
    file = tmp_path / 'epoch=0.ckpt'
    saved = torch.load(file, weights_only=False)
    assert saved['state_dict'].keys() == {f'network.{key}' for key in network().state_dict()}
    assert saved['optimizer_states'][0]['branches'].keys() == {'network.0', 'network.3', 'network.5', 'network.6'}
    torch.manual_seed(99)
    assert same(undisturbed, fit(lightning, tmp_path, where, epochs=3, resume=file))
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        fit(lightning, tmp_path, 'nowhere', epochs=3, resume=file)


# accelerate


@pytest.fixture
def accelerate(monkeypatch):
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    for name in ('LOCAL_RANK', 'RANK', 'WORLD_SIZE'):  # what tools leave in a process is a distributed run to it
        monkeypatch.delenv(name, raising=False)
    accelerate = pytest.importorskip('accelerate')
    yield accelerate
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@pytest.mark.parametrize('before', [True, False], ids=['before prepare', 'after prepare'])
def test_accelerate_trains_as_a_plain_loop_and_resumes(accelerate, tmp_path, before):
    def start():
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, step_scheduler_with_optimizer=False)
        model = network()
        optimizer = OPTIMIZERS['adamw'](model.parameters())
        if before:
            attach_seeded(model, optimizer)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
        loader = torch.utils.data.DataLoader(batches(6), batch_size=None)
        model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
        if not before:
            attach_seeded(model, optimizer)  # a wrapper
        return accelerator, model, optimizer, loader, schedule

    def epoch(accelerator, model, optimizer, loader, schedule):
        for x in loader:
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, x))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
        schedule.step()

    run = start()
    epoch(*run)
    run[0].save_state(str(tmp_path / 'state'))
    epoch(*run)
    assert same(run[1], plain_loop(batches(6), 2, 2, 0.1))
    assert not same(run[1], plain_loop(batches(6), 2, 2, 0.1, attached=False))
    torch.manual_seed(99)
    resumed = start()
    resumed[0].load_state(str(tmp_path / 'state'))
    assert attached_to(resumed[2].optimizer) is not None
    epoch(*resumed)
    assert same(resumed[1], run[1])
