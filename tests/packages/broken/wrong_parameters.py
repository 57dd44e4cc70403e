def varbench_depth_policy(settings, model):
    return None
