"""The interface behind which every tracker stands."""

from abc import ABC, abstractmethod
from pathlib import Path


class Logger(ABC):
    """One run. `finish` is always called, once, also after an error."""

    @abstractmethod
    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        """Before the first row that holds it. `name` may end in `/*`; `step_metric` is the chart's x axis."""

    @abstractmethod
    def log(self, row: dict[str, float]) -> None:
        """One row: metrics together with their step metrics. There is no other notion of a step."""

    @abstractmethod
    def log_figure(self, name: str, path: Path) -> None:
        """A PNG file."""

    def log_scores(self, scores: dict[str, float]) -> None:  # noqa: B027 (optional: result.json has them too)
        """`score/STAGE/SPLIT/METRIC` of a trained stage's best weights, where a tracker has a place for them."""

    @abstractmethod
    def log_checkpoint(self, name: str, files: dict[str, Path]) -> None:
        """A trained stage's files, by their names in the store's folder `name`. They stay as they are."""

    @abstractmethod
    def finish(self, exit_code: int) -> None:
        """Everything logged is safe after this, or a line has said where it is not."""
