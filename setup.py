"""Maps the folders `plugins` and `baselines` to the names they install as; all else is in pyproject.toml."""

from setuptools import find_packages, setup

INSTALLED_AS = {"plugins": "varbench_plugins", "baselines": "varbench_baselines"}

setup(
    packages=[
        *find_packages(include=["varbench", "varbench.*"]),
        *INSTALLED_AS.values(),
        *(f"{name}.{package}" for folder, name in INSTALLED_AS.items() for package in find_packages(folder)),
    ],
    package_dir={name: folder for folder, name in INSTALLED_AS.items()},
)
