"""Holds the native module to what may load into a user's process: its init function out, the C and C++
runtimes in. Anything else could meet another library's copy of the same thing there."""

import re
import subprocess
import sys

MAY_NEED = re.compile(
    r"(libc|libm|libstdc\+\+|libgcc_s|libpthread|libdl|librt|ld-linux-x86-64|linux-vdso)\.so\.\d+"
)


def lines(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def main(module: str) -> int:
    exported = {line.split()[-1].split("@")[0] for line in lines("nm", "-D", "--defined-only", module)}
    needed = [
        match[1]
        for line in lines("readelf", "-dW", module)
        if (match := re.search(r"NEEDED.*\[(.+)\]", line))
    ]
    found = [
        f"exports {name}: hide it, or link what it comes from statically"
        for name in exported - {"PyInit__skate"}
    ]
    found += [f"needs {name}: link it statically" for name in needed if not MAY_NEED.fullmatch(name)]
    if "PyInit__skate" not in exported:
        found.append("does not export PyInit__skate")
    print(
        "\n".join(sorted(found)[:50])
        if found
        else f"exports its init function, needs {', '.join(sorted(needed))}"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
