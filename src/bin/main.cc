// skated: the daemons of a cluster. `skated control` on its head, `skated node` on every machine.
#include <cstdio>
#include <string_view>

#include "bin/control_main.h"
#include "bin/node_main.h"

int main(int argc, char** argv) {
  std::string_view what = argc > 1 ? argv[1] : "";
  if (what == "node") return skate::bin::node_main(argc - 1, argv + 1);
  if (what == "control") return skate::bin::control_main(argc - 1, argv + 1);
  if (what == "--version") return std::puts("skated " SKATE_VERSION) < 0;
  std::fputs(
      "usage: skated node|control [options]\n       skated node --help\n       skated control --help\n",
      stderr);
  return 2;
}
