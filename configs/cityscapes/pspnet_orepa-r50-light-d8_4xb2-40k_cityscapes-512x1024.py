# The branches that cost next to nothing; those a pretrained backbone has more of are added to its plain ones.
_base_ = './pspnet_orepa-r50-d8_4xb2-40k_cityscapes-512x1024.py'

model = dict(backbone=dict(branches='light'))
