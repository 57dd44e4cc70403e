"""Which images a command is about: those that the user names, or those that the package draws."""

from __future__ import annotations

from varbench.data.folder import open_folder
from varbench.data.idx import holds_idx, open_idx
from varbench.data.image_set import ImageSet
from varbench.data.shapes import Shapes
from varbench.errors import UserError
from varbench.plan import presets


def image_set(folder: str | None, *, model: str, side: int) -> ImageSet:
    """The data set in the folder of `--data`; without one the procedural set, unless the model's images are others."""
    if folder is not None:
        return open_idx(folder, side=side) if holds_idx(folder) else open_folder(folder, side=side)
    if brought := presets.preset(model).data:
        raise UserError(f"{model} is about images that do not come with the package: give --data FOLDER, {brought}")
    return Shapes(side=side)
