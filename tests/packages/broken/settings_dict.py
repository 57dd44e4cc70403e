def varbench_settings(model):
    return {"points": ("a",)}
