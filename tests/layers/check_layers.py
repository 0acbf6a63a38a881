"""Holds every #include "folder/..." of src/ and python/bindings/ to the order in LAYERS."""

import re
import sys
from pathlib import Path

INCLUDE = re.compile(r'^\s*#\s*include\s+"([a-z0-9_]+)/([^"]+)"')
SOURCES = {".h", ".cc", ".inc"}


def read_layers(path: Path) -> dict[str, int]:
    lines = (line.split("#")[0].split() for line in path.read_text().splitlines())
    return {folder: level for level, line in enumerate(filter(None, lines)) for folder in line}


def complaint(level: dict[str, int], folder: str, target: str, rest: str) -> str | None:
    if target == folder:
        return None
    if target not in level:
        return f"LAYERS does not list {target}/. Add it there, where it belongs in the order."
    if level[target] < level[folder]:
        return None
    if level[target] == level[folder]:
        if rest.startswith("client/"):
            return None
        return (
            f"{folder}/ and {target}/ are siblings. Talk through wire/ or {target}/client/, "
            f"or take what is needed as an interface that bin/ fills in."
        )
    return (
        f"{target}/ lies above {folder}/ in LAYERS. Move what is needed down to {folder}/ or below, "
        f"or take it as an interface that bin/ fills in."
    )


def main(root: Path) -> int:
    level = read_layers(root / "LAYERS")
    found, files = [], 0
    for path in sorted((root / "src").rglob("*")):
        if path.suffix not in SOURCES:
            continue
        files += 1
        name, folder = path.relative_to(root), path.relative_to(root / "src").parts[0]
        if folder not in level:
            found.append(
                f"{name}: LAYERS does not list {folder}/. Add it there, where it belongs in the order."
            )
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if (match := INCLUDE.match(line)) and (why := complaint(level, folder, match[1], match[2])):
                found.append(f'{name}:{number}: includes "{match[1]}/{match[2]}", but {why}')
    print("\n".join(found) if found else f"{files} files keep to LAYERS")
    return 1 if found or not files else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
