# A pretrained backbone in Mask R-CNN on balloons: plain, OREPA with several learning rates of its stem, and the plain one expanded.
_base_ = './bases/transfer.py'

config = 'bases/mask-rcnn_balloon.py'
metric = 'coco/segm_mAP'
learning_rates = (0.007, 0.016, 0.04, 0.09, 0.21)
