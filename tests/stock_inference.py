"""Predictions of the toolboxes' own inferencers, as lists of numbers; needs nothing of the package under test."""

from collections.abc import Callable


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
