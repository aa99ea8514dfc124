# A pretrained backbone in PSPNet on CamVid: plain, OREPA with several learning rates of its stem, and the plain one expanded.
_base_ = './bases/transfer.py'

config = 'bases/pspnet_camvid.py'
metric = 'mIoU'
learning_rates = (0.007, 0.016, 0.04, 0.09, 0.21)
