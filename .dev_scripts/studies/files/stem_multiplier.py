# The stem's learning rate in a transfer config, relative to the network's.
config = '../../../configs/cityscapes/pspnet_orepa-r18-w16-d8_cityscapes-mini.py'
data_root = 'data/'
metric = 'mIoU'
baseline = '1'
methods = {
    f'{mult:g}': {f'optim_wrapper.paramwise_cfg.custom_keys.backbone.{name}.lr_mult': mult for name in ('conv1', 'bn1')}
    for mult in (0.0, 0.03, 0.1, 0.3, 1.0)
}
learning_rates = (0.02,)
seeds = 2
