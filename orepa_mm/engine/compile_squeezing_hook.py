"""Compiled squeezing for long trainings."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..layers import CompileReport, compile_squeezing, has_compilable_squeezing


@HOOKS.register_module()
class CompileSqueezingHook(Hook):
    """Compile the squeezing of the OREPA layers before training, where it pays.

    Compiling takes up to a minute. The compiled passes are checked against the others and timed beside them; the log says what came out,
    and without a compiler, or where they are not faster, training goes on without them::

        custom_hooks = [dict(type='CompileSqueezingHook')]

    Args:
        min_iters: Compile only if at least so many iterations are to come.
    """

    def __init__(self, min_iters: int = 0) -> None:
        self.min_iters = min_iters
        self.report: CompileReport | None = None

    def before_train(self, runner) -> None:
        if runner.max_iters - runner.iter < self.min_iters or not has_compilable_squeezing(runner.model):
            return
        runner.logger.info('Compiling the squeezing of the OREPA layers; this can take a minute.')
        self.report = compile_squeezing(runner.model)
        runner.logger.info(str(self.report))
