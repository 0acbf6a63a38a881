// skated: the daemons of a cluster. `skated control` on its head, `skated node` on every machine.
#include <unistd.h>

#include <cstdio>
#include <string_view>

#include "bin/control_main.h"
#include "bin/node_main.h"
#include "node/machine.h"

int main(int argc, char** argv) {
  constexpr int kDaemonOomScore = -900;
  std::string_view what = argc > 1 ? argv[1] : "";
  // When memory runs out a worker goes, never what could tell why it went.
  if (what == "node" || what == "control") skate::node::set_oom_score(::getpid(), kDaemonOomScore);
  if (what == "node") return skate::bin::node_main(argc - 1, argv + 1);
  if (what == "control") return skate::bin::control_main(argc - 1, argv + 1);
  if (what == "--version") return std::puts("skated " SKATE_VERSION) < 0;
  std::fputs(
      "usage: skated node|control [options]\n       skated node --help\n       skated control --help\n",
      stderr);
  return 2;
}
