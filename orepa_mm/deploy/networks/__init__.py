"""Networks around the stock layers of a model: a plain RGB picture in, named outputs out, nothing an exporter trips over inside."""

from mmengine.model import BaseModel

from ...errors import ExportError
from ...reparam.convert import reparameterize
from .base import DeployNetwork

__all__ = ['DeployNetwork', 'deploy_network']


def deploy_network(model: BaseModel, softmax: bool = False, labels: bool = False) -> DeployNetwork:
    """The network of a model that leaves this package. The model is re-parameterized in place; norms stay, what runs the result folds them.

    Raises:
        ExportError: When the model is of a kind that cannot be exported.
    """
    network: DeployNetwork
    packages = {kind.__module__.partition('.')[0] for kind in type(model).__mro__}
    if 'mmseg' in packages:
        from .segmentor import Segmentor

        network = Segmentor(model, labels)
    elif 'mmpretrain' in packages:
        from .classifier import Classifier

        network = Classifier(model, softmax)
    elif 'mmdet' in packages:
        network = _detector(model)
    else:
        raise ExportError(f'{type(model).__name__}: is no model of mmdet, mmseg or mmpretrain.')
    if softmax and network.task != 'classification':
        raise ExportError('--softmax is for classifiers.')
    if labels and network.task != 'segmentation':
        raise ExportError('--labels is for segmentors.')
    reparameterize(model)
    return network.eval()


def _detector(model: BaseModel) -> DeployNetwork:
    from mmdet.models import SingleStageDetector as StockSingleStage
    from mmdet.models import TwoStageDetector as StockTwoStage

    from .boxes import check_stock
    from .single_stage import SingleStageDetector
    from .two_stage import TwoStageDetector

    for stock, ours in ((StockTwoStage, TwoStageDetector), (StockSingleStage, SingleStageDetector)):
        if isinstance(model, stock):
            check_stock(model, stock, 'predict')
            return ours(model)
    raise ExportError(f'{type(model).__name__}: is no detector with one dense head or with proposals, which can be exported.')
