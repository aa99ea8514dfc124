# What a transfer config says to have the ImageNet-trained ResNet-50 with Diverse Branch Blocks as its backbone.
backbone = dict(type='OREPAResNet', method='DBB', init_cfg=dict(checkpoint='work_dirs/dbb-resnet50_4xb64-120e_in1k/epoch_120.pth'))
custom_hooks = []  # of your own; the hooks here are default_hooks
