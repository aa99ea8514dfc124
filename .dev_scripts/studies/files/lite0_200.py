# As lite0_few.py, with 200 images a class.
_base_ = './lite0_few.py'

config = 'bases/lite0_200.py'
