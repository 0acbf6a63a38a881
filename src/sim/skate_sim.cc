// skate_sim --seeds N --from S: runs simulated clusters and their ownership; the first that fails prints its
// seed.
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "sim/cluster_sim.h"
#include "sim/ownership_sim.h"

namespace {

bool read_number(const char* text, uint64_t& out) {
  const char* end = text + std::strlen(text);
  const auto parsed = std::from_chars(text, end, out);
  return parsed.ec == std::errc() && parsed.ptr == end;
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t seeds = 100, from = 1;
  for (int i = 1; i < argc; i += 2) {
    const std::string_view name = argv[i];
    uint64_t* value = name == "--seeds" ? &seeds : name == "--from" ? &from : nullptr;
    if (value == nullptr || i + 1 >= argc || !read_number(argv[i + 1], *value)) {
      std::fprintf(stderr, "usage: skate_sim [--seeds N] [--from S]\n");
      return 2;
    }
  }
  for (uint64_t seed = from; seed < from + seeds; ++seed) {
    const skate::sim::SimReport report = skate::sim::run_cluster(seed);
    std::printf("seed %" PRIu64 ": %" PRIu64
                " steps, %u tasks, %u actors, %u groups, %u node and %u control crashes, %u cuts: %s\n",
                seed, report.steps, report.tasks, report.actors, report.groups, report.node_crashes,
                report.control_crashes, report.cuts, report.problem.empty() ? "ok" : report.problem.c_str());
    const skate::sim::OwnershipReport owned = skate::sim::run_ownership(seed);
    std::printf("seed %" PRIu64 " of ownership: %" PRIu64 " messages, %u deaths, %u hand-overs, %" PRIu64
                " objects adopted, %" PRIu64 " lost: %s\n",
                seed, owned.messages, owned.deaths, owned.hand_overs, owned.adopted, owned.lost,
                owned.problem.empty() ? "ok" : owned.problem.c_str());
    if (!report.problem.empty() || !owned.problem.empty()) {
      std::printf("FAILED with seed %" PRIu64 " of Skate " SKATE_VERSION "\n", seed);
      return 1;
    }
  }
  return 0;
}
