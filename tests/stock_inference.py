"""Predictions of the toolboxes' own inferencers, as lists of numbers; needs nothing of the package under test.

As a script it writes those of a written stock model, tests it by the toolbox's own script, and trains a classifier on from there.
"""

import json
import runpy
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path


def predictions(scope: str, config: str, weights: str, picture: str, change: Callable = lambda model: model) -> list[list[float]]:
    """Of each way a toolbox offers: the boxes, scores, labels or label map that it gives for ``picture``.

    Args:
        change: Called with the model of each inferencer before it predicts.
    """
    if scope == 'mmpretrain':
        from mmpretrain import ImageClassificationInferencer, get_model

        inferencer = ImageClassificationInferencer(config, pretrained=weights, device='cpu')
        change(inferencer.model)
        model = get_model(config, pretrained=weights, device='cpu')
        change(model)
        return [found(picture)[0]['pred_scores'].tolist() for found in (inferencer, ImageClassificationInferencer(model, device='cpu'))]
    if scope == 'mmseg':
        from mmseg.apis import MMSegInferencer, inference_model, init_model

        inferencer = MMSegInferencer(config, weights=weights, device='cpu')
        change(inferencer.model)
        model = init_model(config, weights, device='cpu')
        change(model)
        label_map = inferencer(picture, show=False)['predictions'].reshape(-1)
        logits = inference_model(model, picture).seg_logits.data.reshape(-1)
        return [label_map.tolist(), logits[::50].tolist()]
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    inferencer = DetInferencer(config, weights=weights, device='cpu', show_progress=False)
    change(inferencer.model)
    model = init_detector(config, weights, device='cpu')
    change(model)
    found = inferencer(picture, no_save_vis=True)['predictions'][0]
    instances = inference_detector(model, picture).pred_instances
    return [found['scores'], found['labels'], instances.bboxes.reshape(-1).tolist(), instances.scores.tolist()]


def main(scope: str, folder: str, picture: str, out: str) -> None:
    config, weights = f'{folder}/config.py', f'{folder}/model.pth'
    found = predictions(scope, config, weights, picture)

    def script(name: str, *args: str) -> None:
        sys.argv = [str(Path(find_spec(scope).origin).parent / '.mim' / 'tools' / name), config, *args]
        runpy.run_path(sys.argv[0], run_name='__main__')

    script('test.py', weights, '--work-dir', out)
    if scope == 'mmpretrain':
        # mmengine keeps one logger for each experiment's name and second, and a test that short would share its log
        named = ('--cfg-options', 'experiment_name=finetuned')
        script('train.py', '--work-dir', f'{out}/finetuned', '--no-validate', *named)
        log = next(Path(out, 'finetuned').glob('*/*.log')).read_text()
        assert f'Load checkpoint from {weights}' in log and 'Epoch(train) [1]' in log, log[-1000:]
    Path(out, 'predictions.json').write_text(json.dumps(found))


if __name__ == '__main__':
    main(*sys.argv[1:])
