// skate_sim --seeds N --from S: runs simulated clusters; the first that fails prints its seed.
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "sim/cluster_sim.h"

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
    const skate::sim::ObjectCounts& objects = report.objects;
    std::printf("seed %" PRIu64 " of objects: %" PRIu64
                " messages, %u calls, %u deaths, %u hand-overs, %u refusals, %" PRIu64 " adopted, %" PRIu64
                " lost\n",
                seed, objects.messages, objects.calls, objects.deaths, objects.hand_overs, objects.refusals,
                objects.adopted, objects.lost);
    if (!report.problem.empty()) {
      std::printf("FAILED with seed %" PRIu64 " of Skate " SKATE_VERSION "\n", seed);
      return 1;
    }
  }
  return 0;
}
