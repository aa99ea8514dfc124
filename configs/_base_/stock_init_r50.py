# What a transfer config says to start from stock ImageNet weights and train the backbone with branches beside the optimizer. The model is
# the stock network, and its 7x7 stem stays plain.
backbone = dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='torchvision://resnet50'))
branches_hook = dict(type='BranchesHook', pattern='backbone')
custom_hooks = []  # of your own; the hooks here are default_hooks
