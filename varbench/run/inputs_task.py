"""What the children do that look at a user's files. `python -m varbench.run.inputs_task VAE VAR` prints sizes as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from varbench.data.folder import check_readable, open_folder
from varbench.engine.pipeline import load_pipeline
from varbench.errors import UserError
from varbench.model.checkpoints import load_tokenizer, load_transformer
from varbench.plan import presets
from varbench.quality.reference import check_reference, image_paths
from varbench.run.jobs import Job
from varbench.run.quality_task import Looks

if TYPE_CHECKING:
    from varbench.run.channel import Channel


def look(job: Job, channel: Channel) -> None:
    """Everything is opened as the rows will open it, on the CPU; what is wrong with it is raised."""
    model = presets.preset(job.options.model).spec
    if job.options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"--device {job.options.device}: torch {torch.__version__} sees no GPU here. Leave --device out, or install torch for CUDA."
        )
    channel.say("progress", row=job.full)
    if job.files is not None:
        files = dict(job.files)
        load_pipeline(job.options.model, vae=files.pop("vae"), var=files.pop("main"), companions=files)
        channel.say("progress", row=job.full)
    looks = Looks(replace(job, options=replace(job.options, device="cpu")), side=model.image_side)
    if job.options.images and looks.scores:
        if job.options.reference is not None and not job.options.reference.endswith(".npz"):
            for path in image_paths(job.options.reference):
                check_readable(path, side=model.image_side)
                channel.alive(row=job.full)
        check_reference(looks.reference, looks.extractor, side=model.image_side)
    if job.options.data is not None:
        classes = open_folder(job.options.data, side=model.image_side).classes
        if len(classes) > model.classes:
            raise UserError(
                f"--data {job.options.data} has {len(classes)} classes, and {model.name} knows {model.classes}."
            )


def main(vae: str, var: str) -> int:
    try:
        sizes = load_transformer(var, load_tokenizer(vae)[0]).spec
    except UserError as error:
        print(json.dumps({"error": str(error)}))
    else:
        print(json.dumps({"sizes": sizes.to_json()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
