"""Networks around the stock layers of a model: a plain RGB picture in, named outputs out, nothing an exporter trips over inside."""

from mmengine.model import BaseModel

from ...errors import ExportError
from ...reparam.convert import reparameterize
from .base import DeployNetwork

__all__ = ['DeployNetwork', 'deploy_network']


def deploy_network(model: BaseModel, softmax: bool = False, labels: bool = False) -> DeployNetwork:
    """The network of a model of mmdet, mmseg or mmpretrain that leaves this package.

    Args:
        model: As :func:`.load_model` gives it; it is re-parameterized in place. Norms stay: what runs the result folds them.
        softmax: As for :class:`.Classifier`.
        labels: As for :class:`.Segmentor`.

    Raises:
        ExportError: When the model is of a kind that cannot be exported.
    """
    network: DeployNetwork
    if hasattr(model, 'decode_head'):
        from .segmentor import Segmentor

        network = Segmentor(model, labels)
    elif hasattr(model, 'head'):
        from .classifier import Classifier

        network = Classifier(model, softmax)
    elif hasattr(model, 'rpn_head') and hasattr(model, 'roi_head'):
        from .two_stage import TwoStageDetector

        network = TwoStageDetector(model)
    elif hasattr(model, 'bbox_head') and not hasattr(model, 'mask_head'):
        from .single_stage import SingleStageDetector

        network = SingleStageDetector(model)
    else:
        raise ExportError(f'{type(model).__name__}: is no classifier, segmentor or detector of a kind that can be exported.')
    if softmax and network.task != 'classification':
        raise ExportError('--softmax is for classifiers.')
    if labels and network.task != 'segmentation':
        raise ExportError('--labels is for segmentors.')
    reparameterize(model)
    return network.eval()
