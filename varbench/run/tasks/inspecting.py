"""Opens the files that a user gives, as a run will. `python -m varbench.run.tasks.inspecting VAE VAR` prints sizes."""

from __future__ import annotations

import sys

import torch

from varbench.base.devices import check_device
from varbench.data.folder import check_readable
from varbench.data.given import image_set
from varbench.engine.loading import load_pipeline
from varbench.errors import UserError
from varbench.model.checkpoints import load_tokenizer, load_transformer
from varbench.quality.reference import check_reference, image_paths
from varbench.run.channel import Channel
from varbench.run.messages import Failed, FoundSizes, Inspected, Job, to_line
from varbench.run.reasons import of_exception
from varbench.run.scoring_networks import ScoringNetworks


def run(job: Job, channel: Channel) -> None:
    """Everything is opened as the rows will open it, on the CPU; what is wrong with it is raised."""
    options, model = job.options, job.model
    computes_here = options.executor == "local"
    if computes_here:
        check_device(options.device)
    channel.alive()
    if job.files is not None:
        files = dict(job.files)
        load_pipeline(options.model, vae=files.pop("vae"), var=files.pop("main"), companions=files)
        channel.alive()
    if options.data is not None:
        classes = image_set(options.data, model=options.model, side=model.image_side).classes
        if len(classes) > model.classes:
            raise UserError(
                f"--data {options.data} has {len(classes)} classes, and {model.name} knows {model.classes}."
            )
    networks = ScoringNetworks(options, side=model.image_side, device="cpu")
    if options.images and networks.scores:
        if options.reference is not None and not options.reference.endswith(".npz"):
            for path in image_paths(options.reference):
                check_readable(path, side=model.image_side)
                channel.alive()
        check_reference(networks.reference, networks.extractor, side=model.image_side)
        _ = networks.judge  # one that does not know the classes is refused
    on_gpu = computes_here and options.device.startswith("cuda")
    channel.send(Inspected(device_memory=torch.cuda.mem_get_info(options.device)[0] if on_gpu else None))


def main(vae: str, var: str) -> int:
    try:
        answer: FoundSizes | Failed = FoundSizes(model=load_transformer(var, load_tokenizer(vae)[0]).spec)
    except UserError as error:
        answer = Failed(failure=of_exception(error))
    sys.stdout.buffer.write(to_line(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
