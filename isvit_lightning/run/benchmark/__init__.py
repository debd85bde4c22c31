"""How fast, how large and how true a finished network is in each engine."""

from isvit_lightning.run.benchmark.options import options_of
from isvit_lightning.run.benchmark.verb import benchmark

__all__ = ["benchmark", "options_of"]
