"""The interface of a callback. Each hook gets the current training."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ups.training.loop import Training
    from ups.training.store import Entry


class Callback:
    def on_found(self, entry: "Entry") -> None:
        """Of a stage (ups/training/store.py) that was trained before; none of the other hooks is called for it."""

    def on_start(self, training: "Training") -> None:
        """Before the first step of this start; a resumed training has its `rows` already."""

    def on_step(self, training: "Training") -> None:
        """After each step of the optimizer; `training.values` are the step's."""

    def on_evaluate(self, training: "Training", scores: dict[str, float]) -> None:
        """After a validation of the averaged weights."""

    def on_checkpoint(self, training: "Training", stopping: bool) -> None:
        """At the end of each step, when the state may be saved; `stopping`: it is the last chance."""

    def on_end(self, training: "Training") -> None:
        """After the last step, with the best weights loaded."""

    def on_trained(self, training: "Training") -> None:
        """After `training.entry` is complete, its scores written."""

    def on_exception(self, training: "Training", error: BaseException) -> None:
        """Before an error or an interruption leaves the loop."""
