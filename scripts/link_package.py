"""Installs a project into this Python as a path to its sources: link_package.py PROJECT SOURCES.

What `pip install -e` does, with the project's real metadata, but as one plain line in a .pth file: no
import hook that would cost every start of the interpreter, and no build of the native parts, which
`make build` puts beside the sources.
"""

import contextlib
import io
import os
import shutil
import sys
import sysconfig
from importlib import import_module
from pathlib import Path


def main(project: Path, sources: Path) -> None:
    site = Path(sysconfig.get_path("purelib"))
    os.chdir(project)
    try:
        import tomllib
    except ModuleNotFoundError:
        import tomli as tomllib  # Python 3.10; comes with pytest
    settings = tomllib.loads(Path("pyproject.toml").read_text())
    backend = import_module(settings["build-system"]["build-backend"])
    name = settings["project"]["name"].replace("-", "_")
    for old in site.glob(f"{name}-*.dist-info"):
        shutil.rmtree(old)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            info = site / backend.prepare_metadata_for_build_editable(str(site))
    except BaseException:
        print(said.getvalue(), file=sys.stderr)
        raise
    path_file = site / f"{name}.pth"
    path_file.write_text(f"{sources}\n")
    (info / "INSTALLER").write_text("make\n")
    record = [path_file, *sorted(file for file in info.rglob("*") if file.is_file()), info / "RECORD"]
    (info / "RECORD").write_text("".join(f"{file.relative_to(site)},,\n" for file in record))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
