"""The offline pass of methods that have one, on the weights as they are before any recipe is trained."""

from __future__ import annotations

from varbench import rows
from varbench.engine.calibration import calibrate
from varbench.record import CalibrationRun
from varbench.record.failure import Failure
from varbench.run.channel import Channel
from varbench.run.messages import Calibrated, Job
from varbench.run.reasons import of_exception
from varbench.run.tasks.making import pipeline_of
from varbench.run.tasks.resolving import code_of


def run(job: Job, channel: Channel) -> None:
    made = [rows.resolve(name, job.model) for name in job.rows]
    codes = {row.name: code_of(row.plugins) for row in made}
    pipe = pipeline_of(job, made)
    names: dict[str, str] = {}
    runs: dict[str, CalibrationRun] = {}
    failures: dict[str, Failure] = {}
    for row in made:
        channel.alive(row.name)
        try:
            found = calibrate(row, pipe)
        except (Exception, SystemExit) as error:
            failures[row.name] = of_exception(error)
            continue
        names[row.name] = found.row.name
        runs[row.name] = CalibrationRun(
            asked=row.name, parameters=dict(found.parameters), digest=found.digest, seconds=found.seconds
        )
    channel.send(Calibrated(rows=names, runs=runs, failures=failures, codes=codes))
