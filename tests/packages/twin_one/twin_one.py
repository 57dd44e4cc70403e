from varbench.policies import Settings


def varbench_settings(model):
    return Settings(summary="one of two")
