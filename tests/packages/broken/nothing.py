def depth_policy(setting, model):
    return None
