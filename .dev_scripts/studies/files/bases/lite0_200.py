# 200 images a class.
_base_ = './lite0.py'

train_dataloader = dict(dataset=dict(indices=list(range(0, 16000, 8))))
