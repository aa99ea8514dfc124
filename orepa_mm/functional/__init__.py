"""Arithmetic of re-parameterization: weights in, weights out, plain torch."""

from .closed_form import closed_form_kxk as closed_form_kxk
from .closed_form import gradient_kxk as gradient_kxk
from .factor import shifts_and_kernel as shifts_and_kernel
from .fuse import fuse_norm as fuse_norm
from .gradient_matrix import gradient_matrix as gradient_matrix
from .gradient_matrix import multiply_taps as multiply_taps
from .merge import add_identity as add_identity
from .merge import average as average
from .merge import merge_1x1_kxk as merge_1x1_kxk
from .precision import HOOKS as HOOKS
from .precision import in_float32 as in_float32
from .precision import is_plain_eager as is_plain_eager
from .precision import under_autocast as under_autocast
from .precision import without_autocast as without_autocast
from .repvgg_l2 import repvgg_l2 as repvgg_l2
from .squeeze import BRANCHES as BRANCHES
from .squeeze import WEIGHTS as WEIGHTS
from .squeeze import Branches as Branches
from .squeeze import branch_kernels as branch_kernels
from .squeeze import compose as compose
from .squeeze import frequency_prior as frequency_prior
from .squeeze import kernel_of as kernel_of
from .squeeze import rows_of as rows_of
from .squeeze import squeeze_kxk as squeeze_kxk
