// A whole cluster on virtual time: the real control service with a simulated disk, the real rpc over a
// simulated network, nodes around the real scheduler, and on them processes around the real ownership.
// Everything that happens follows from the seed.
//
// It runs a workload through crashes and losses, lets things calm down, and checks what must hold: every task
// of a living driver is done, once; every actor is alive once, or dead; control and nodes agree, of placement
// groups too: their bundles lie where control has placed them and nowhere else; what is held is there
// (sim_objects.h, after every message); every get ends; when all is dropped, all counts are zero and the
// stores empty; when all is over, no lease, demand, reservation, object or process of a job is left.
#pragma once

#include <cstdint>
#include <string>

#include "sim/sim_objects.h"

namespace skate::sim {

struct SimReport {
  std::string problem;  ///< empty: all is well
  uint64_t steps{};
  uint32_t tasks{};
  uint32_t actors{};
  uint32_t groups{};       ///< placement groups that were placed
  uint32_t group_tasks{};  ///< that ran in them
  uint32_t node_crashes{};
  uint32_t control_crashes{};
  uint32_t cuts{};
  ObjectCounts objects;
};

SimReport run_cluster(uint64_t seed);

}  // namespace skate::sim
