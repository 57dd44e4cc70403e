def varbench_settings(model):
    raise RuntimeError("settings of <this> plugin\nfail")
