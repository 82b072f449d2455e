"""A callback of Hydra's that writes down what each job returned to the sweeper."""

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Returned(Callback):
    """A line for each, in the file `returned`."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_) -> None:
        with open("returned", "a") as file:
            print(job_return.return_value, file=file)
