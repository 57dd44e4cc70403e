"""How good the images are: networks that look at them, and the distances made from what those networks see.

The way through: floats become bytes in `to_uint8`; a `Reference` is what samples are compared with; `from_network` or
`from_inception` says who looks; `score` gives every figure with its interval. Nothing here downloads anything.
"""

from varbench.engine.pixels import to_uint8
from varbench.quality.extractors import Extractor, from_inception, from_network
from varbench.quality.fidelity import Scores, Scoring, score
from varbench.quality.images import write_png, write_samples_npz
from varbench.quality.networks import Network, load_network
from varbench.quality.reference import Reference, reference_folder, reference_images, reference_npz
from varbench.quality.same_noise import SameNoise, distance_to_full

__all__ = [
    "Extractor",
    "Network",
    "Reference",
    "SameNoise",
    "Scores",
    "Scoring",
    "distance_to_full",
    "from_inception",
    "from_network",
    "load_network",
    "reference_folder",
    "reference_images",
    "reference_npz",
    "score",
    "to_uint8",
    "write_png",
    "write_samples_npz",
]
