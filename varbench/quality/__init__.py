"""How good the images are: networks that look at them, and the distances made from what those networks see.

The way through: floats become bytes in `to_uint8`; a `Reference` is what samples are compared with; `from_network` or
`from_inception` says who looks; `score` gives every figure with its interval. Nothing here downloads anything.
"""

from varbench.quality.extractors import Extractor, from_inception, from_network, register
from varbench.quality.fidelity import Scores, Scoring, score
from varbench.quality.images import read_samples_npz, to_uint8, write_png, write_samples_npz
from varbench.quality.manifold import nearest_training
from varbench.quality.networks import Network, load_network
from varbench.quality.reference import Reference, reference_folder, reference_images, reference_npz
from varbench.quality.same_noise import SameNoise, distance_to_full
from varbench.quality.spread import compare_spread, measure_figures

__all__ = [
    "Extractor",
    "Network",
    "Reference",
    "SameNoise",
    "Scores",
    "Scoring",
    "compare_spread",
    "distance_to_full",
    "from_inception",
    "from_network",
    "load_network",
    "measure_figures",
    "nearest_training",
    "read_samples_npz",
    "reference_folder",
    "reference_images",
    "reference_npz",
    "register",
    "score",
    "to_uint8",
    "write_png",
    "write_samples_npz",
]
