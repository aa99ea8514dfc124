# The stem's learning rate relative to the network's, for every transfer config: docs/learning_rate.md says why and how to choose it.
stem_paramwise_cfg = dict(custom_keys={'backbone.conv1': dict(lr_mult=0.1), 'backbone.bn1': dict(lr_mult=0.1)})
