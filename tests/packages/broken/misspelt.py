def varbench_depth_polcy(setting, model):
    return None
