# The stock network with light branches of fixed scales beside SGD: it trains as they would, at the plain network's cost.
_base_ = './none-resnet18_4xb64-120e_in1k.py'

default_hooks = dict(branches=dict(type='BranchesHook', branches='light', scales='fixed'))
