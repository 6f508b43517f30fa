"""Losses on labels, teacher outputs and weights, as plain functions of tensors.

`LOSSES` lists the loss functions, `compute_loss` computes a weighted sum of them as in a recipe,
and `Criterion` wraps one as a module. Every loss function can be imported from here.
"""

from distill.losses.classification import *
from distill.losses.compute import compute_loss
from distill.losses.criterion import Criterion
from distill.losses.feature_distillation import *
from distill.losses.label_smoothing import *
from distill.losses.logit_distillation import *
from distill.losses.margins import *
from distill.losses.online_targets import *
from distill.losses.outputs import Outputs, ensemble
from distill.losses.registry import (
    LOSS_MODULES,
    LOSSES,
    make_loss_modules,
    required_outputs,
    resolve_priors,
    terms_with_modules,
)
from distill.losses.regularizers import *
from distill.losses.tensor_ops import IGNORED
