"""Gives a hook that this version may not execute."""

from varbench import hookimpl
from varbench.policies import Transformed


@hookimpl
def varbench_transform_model(setting, model):
    return Transformed(apply=lambda transformer: transformer)
