# A pretrained backbone in Mask R-CNN on balloons: plain, OREPA with several learning rates of its stem, and the plain one expanded. In how
# many ways it can be expanded is what transfer_pspnet.py compares.
_base_ = './bases/transfer.py'

config = 'bases/mask-rcnn_balloon.py'
metric = 'coco/segm_mAP'
methods = {
    '_delete_': True,
    **{name: options for name, options in _base_.methods.items() if 'expanded' not in name or name == 'expanded, balanced'},
}
learning_rates = (0.004, 0.01, 0.022, 0.05, 0.12)
