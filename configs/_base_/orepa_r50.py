# What a transfer config says to have the ImageNet-trained OREPA ResNet-50 as its backbone.
backbone = dict(type='OREPAResNet', init_cfg=dict(checkpoint='work_dirs/orepa-resnet50_4xb64-120e_in1k/epoch_120.pth'))
custom_hooks = []  # of your own; the hooks here are default_hooks
