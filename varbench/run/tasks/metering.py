"""Computes the metrics that a plugin brings, a value for each image, in a process that gets copies of the images alone."""

from __future__ import annotations

import torch

from varbench.policies import Metric
from varbench.quality.images import read_made
from varbench.record.failure import Failure
from varbench.rows.check_policies import metrics_of
from varbench.rows.manager import manager
from varbench.run.channel import Channel
from varbench.run.messages import Job, Measured, Take
from varbench.run.reasons import of_exception


def run(job: Job, channel: Channel) -> None:
    assert job.metrics_of is not None
    metrics = {f"{job.metrics_of}.{metric.name}": metric for metric in metrics_of(job.metrics_of, manager())}
    for message in channel.requests():
        assert isinstance(message, Take)
        # Another plugin was handed the file before.
        images, _ = read_made(message.chunk.path, sha256=message.chunk.sha256)
        channel.send(measured(metrics, torch.from_numpy(images), torch.tensor(message.labels)))


def measured(metrics: dict[str, Metric], images: torch.Tensor, labels: torch.Tensor) -> Measured:
    values: dict[str, tuple[float, ...]] = {}
    failures: dict[str, Failure] = {}
    for name, metric in metrics.items():
        try:
            found = torch.as_tensor(metric.compute(images.clone(), labels.clone())).double()
            if found.shape != (len(images),) or not torch.isfinite(found).all():
                raise ValueError(
                    f"{name} gave shape {tuple(found.shape)} for {len(images)} images; give one number an image"
                )
            values[name] = tuple(found.tolist())
        except (Exception, SystemExit) as error:
            failures[name] = of_exception(error)
    return Measured(values=values, better={name: metrics[name].better for name in values}, failures=failures)
