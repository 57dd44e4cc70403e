"""Maps the folders `plugins` and `baselines` to the names they install as; all else is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

INSTALLED_AS = {"plugins": "varbench_plugins", "baselines": "varbench_baselines"}

setup(
    packages=[
        # Namespace packages too: folders of data count as packages.
        *find_namespace_packages(include=["varbench", "varbench.*"], exclude=["*.__pycache__"]),
        *INSTALLED_AS.values(),
        *(
            f"{name}.{package}"
            for folder, name in INSTALLED_AS.items()
            for package in find_namespace_packages(folder, exclude=["*__pycache__"])
        ),
    ],
    package_dir={name: folder for folder, name in INSTALLED_AS.items()},
)
