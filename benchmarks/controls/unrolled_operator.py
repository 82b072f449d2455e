"""A control of stage 3: the operator trained on through its own rollouts, without a corrector and without noise."""

import copy

from ups.stages.operator import Operator


class UnrolledOperator(Operator):
    """A copy of the required operator, which is left as it is; its loss is an operator's."""

    def __init__(self, requires: Operator, **settings):
        network = copy.deepcopy(requires.network).requires_grad_(True).train()
        super().__init__(lambda **_: network, None, **settings)
