"""Every way mmengine finds a checkpoint reads it without running code from it."""

import functools
import http.server
import threading
from pathlib import Path

import pytest
import torch
from conftest import Payload
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_checkpoint

from orepa_mm.checkpoints import loaders
from orepa_mm.errors import CheckpointError

SCHEMES = dict(CheckpointLoader._schemes)  # as the import leaves them
HOSTS = [f'https://download.{loaders.GONE}', f'http://{loaders.GONE.upper()}.:80/{loaders.GONE}', f'https://x@mm.cdn.{loaders.GONE}']


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with a good and a hostile checkpoint, and what the latter would make."""
    torch.save(dict(state_dict=dict(weight=torch.ones(1, 1))), tmp_path / 'good.pth')
    torch.save(dict(state_dict=dict(weight=torch.ones(1, 1)), payload=Payload(Path.touch, tmp_path / 'ran')), tmp_path / 'evil.pth')
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))  # for this test alone
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    loaders.use_safe_loaders()
    return tmp_path


@pytest.fixture
def server(files):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(files))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def loads(path: str) -> bool:
    model = torch.nn.Linear(1, 1, bias=False)
    load_checkpoint(model, path)
    return model.weight.item() == 1


def refuses(path: str, folder: Path) -> None:
    with pytest.raises(CheckpointError, match='would run code'):
        loads(path)
    assert not (folder / 'ran').exists()


def test_local_files(files):
    assert loads(str(files / 'good.pth'))
    refuses(str(files / 'evil.pth'), files)
    with pytest.raises(CheckpointError, match='no such checkpoint file.*architectures.md#published-checkpoints'):
        loads('work_dirs/orepa-resnet50_4xb64-120e_in1k/epoch_120.pth')
    odd = files / 'http:' / 'evil.pth'
    odd.parent.mkdir()
    (files / 'evil.pth').rename(odd)
    refuses(f'{files}/http://evil.pth', files)


def test_downloads(files, server):
    assert loads(f'{server}/good.pth')
    assert (files / 'hub' / 'hub' / 'checkpoints' / 'good.pth').is_file()
    refuses(f'{server}/evil.pth', files)
    with pytest.raises(CheckpointError, match='cannot be downloaded'):
        loads(f'{server}/missing.pth')
    assert {path.name for path in (files / 'hub' / 'hub' / 'checkpoints').iterdir()} == {'good.pth', 'evil.pth'}


@pytest.mark.parametrize('scheme', ['torchvision', 'modelzoo', 'open-mmlab', 'openmmlab', 'mmcls'])
def test_names(files, server, scheme, monkeypatch):
    urls = {'good': f'{server}/good.pth', 'evil': f'{server}/evil.pth'}
    for name in ('get_torchvision_models', 'get_external_models', 'get_mmcls_models'):
        monkeypatch.setattr(loaders, name, lambda: dict(urls))
    if scheme == 'mmcls':  # these are classifiers, of which the backbone is taken
        torch.save(dict(state_dict={'backbone.weight': torch.ones(1, 1), 'head.weight': torch.ones(2)}), files / 'good.pth')
    assert loads(f'{scheme}://good')
    refuses(f'{scheme}://evil', files)
    with pytest.raises(CheckpointError, match='no checkpoint of this name'):
        loads(f'{scheme}://other')


def test_other_stores(files, monkeypatch):
    monkeypatch.setattr(loaders, 'get', lambda path: (files / Path(path).name).read_bytes())
    assert loads('s3://bucket/good.pth')
    refuses('cluster:s3://bucket/evil.pth', files)
    with pytest.raises(CheckpointError, match='cannot be read from there'):
        loads('pavi://model/1')


@pytest.mark.parametrize('name', ['open-mmlab://resnet50_v1c', 'mmcls://resnet18', *(f'{host}/mmdetection/v3.0/x.pth' for host in HOSTS)])
def test_the_host_that_is_gone(name, files, monkeypatch):
    """Nothing is asked of whoever has its name, with the two lines and in inferencers too; what lies in the cache is read as any file."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', SCHEMES)
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda *args: pytest.fail('asked'))
    for function in ('get_external_models', 'get_mmcls_models'):  # as in the official packages; OneDL's have a host of theirs
        monkeypatch.setattr(loaders, function, lambda: {n: f'{HOSTS[0]}/{n}.pth' for n in ('resnet50_v1c', 'resnet18')})
    with pytest.raises(CheckpointError, match='is no longer OpenMMLab.*path of a file of your own') as error:
        loads(name)
    (files / 'hub' / 'hub' / 'checkpoints').mkdir(parents=True)
    (files / 'evil.pth').rename(files / 'hub' / 'hub' / 'checkpoints' / Path(str(error.value).split(': ')[0]).name)
    refuses(name, files)
