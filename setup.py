"""Where the packages stand; everything else is in pyproject.toml.

`train/`, `sample/` and `eval/` keep their place at the top level and install as `unitok.train`, `unitok.sample` and
`unitok.eval`, so that names that generic never reach site-packages. The list is computed: a new sub-package needs no
entry.
"""

from setuptools import find_packages, setup

FOLDERS = {
    "tokenizers_vq": "tokenizers_vq",
    "unitok": "unitok",
    "unitok.train": "train",
    "unitok.sample": "sample",
    "unitok.eval": "eval",
    "unitok.recipes": "recipes",  # no code: the configurations that `unitok demo` runs
}

setup(
    package_dir=FOLDERS,
    packages=[
        name
        for package, folder in FOLDERS.items()
        for name in [package, *(f"{package}.{inner}" for inner in find_packages(folder))]
    ],
)
