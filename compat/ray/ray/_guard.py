"""Refuses to be mixed with a real Ray."""

import os


def check(package_dir: str) -> None:
    """ImportError when the files of a real Ray lie in this package, or in another one on the path."""
    import sys

    here = os.path.realpath(package_dir)
    places = [here]
    for entry in sys.path:
        place = os.path.realpath(os.path.join(entry or os.getcwd(), "ray"))
        if place != here and os.path.isfile(os.path.join(place, "__init__.py")):
            places.append(place)
    for place in places:
        if any(os.path.exists(os.path.join(place, name)) for name in ("_raylet.so", "_raylet.pyd")):
            raise ImportError(
                f"a real Ray is installed at {place}, and skate-ray provides the package `ray` as well: the "
                "two cannot share an environment. Run `pip uninstall ray skate-ray`, then install the one "
                "that you want"
            )
