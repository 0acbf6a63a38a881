// For tests: a node in small, around the real scheduler. Its workers are ready, and end, at once.
#pragma once

#include <gtest/gtest.h>

#include "node/scheduler/scheduler.h"

namespace skate::node {

inline constexpr int64_t kUnit = wire::kResourceUnit;
inline constexpr int64_t kMs = 1000;

inline Resources cpu(double count) { return {{"CPU", static_cast<int64_t>(count * kUnit)}}; }
inline Resources gpu(double count) { return {{"GPU", static_cast<int64_t>(count * kUnit)}}; }
inline JobId job(uint8_t number) {
  JobId id;
  id.bytes = {number, 0, 0, 0};
  return id;
}

/// Drives a scheduler and keeps the other side's view: workers, leases, recalls.
struct Node {
  explicit Node(SchedulerOptions options) : scheduler(std::move(options)) {}
  static SchedulerOptions options(Resources total, ResourceInstances instances = {}) {
    SchedulerOptions out;
    out.total = std::move(total);
    out.instances = std::move(instances);
    return out;
  }

  void demand(ProcessNumber owner, uint64_t shape, const Resources& need, uint32_t wanted,
              uint8_t job_number = 1, int32_t priority = 0, const Place& place = {}) {
    scheduler.demand(owner, shape, job(job_number), need, "", "f" + std::to_string(shape), priority, wanted,
                     wanted, now, place);
  }
  /// Decides until nothing more happens; workers are ready at once.
  void settle() {
    for (int round = 0; round < 1000; ++round) {
      Decisions out = scheduler.decide(now);
      for (const Grant& grant : out.grants) leases.push_back(grant);
      for (const ActorPlacement& placement : out.placements) placements.push_back(placement);
      for (const Recall& recall : out.recalls) recalls.push_back(recall);
      for (const Refusal& refusal : out.refusals) refusals.push_back(refusal);
      for (const Reserved& made : out.reserved) {
        reserved.push_back(made);
        if (commits && made.ok) scheduler.commit(made.group, made.attempt);
      }
      for (const Eviction& eviction : out.evictions) {
        evictions.push_back(eviction);
        end(eviction.worker);
      }
      limit_reached |= out.workers_limit_reached;
      for (const StopWorker& stop : out.stops) {
        stops.push_back(stop);
        end(stop.worker);
      }
      for (const StartWorker& start : out.starts) {
        ++started;
        if (start_works) {
          scheduler.worker_ready(start.worker, now);
        } else {
          if (starts_hang) scheduler.worker_hung(start.worker);
          scheduler.process_died(start.worker, now);
        }
      }
      ASSERT_EQ(scheduler.check(), "");
      if (out.grants.empty() && out.starts.empty() && out.stops.empty() && out.placements.empty() &&
          out.reserved.empty() && out.evictions.empty())
        return;
    }
    FAIL() << "the scheduler does not come to rest";
  }
  void end(ProcessNumber worker) {
    std::erase_if(leases, [&](const Grant& grant) { return grant.worker == worker; });
    std::erase_if(placements, [&](const ActorPlacement& placement) { return placement.worker == worker; });
    scheduler.process_died(worker, now);
  }
  void give_back(LeaseNumber lease) {
    for (const Grant& grant : leases)
      if (grant.lease == lease) scheduler.lease_returned(grant.owner, lease, false, now);
    std::erase_if(leases, [&](const Grant& grant) { return grant.lease == lease; });
  }
  void answer_recalls() {
    for (const Recall& recall : std::exchange(recalls, {})) give_back(recall.lease);
  }
  size_t held(ProcessNumber owner, uint64_t shape = 0) const {
    return static_cast<size_t>(std::count_if(leases.begin(), leases.end(), [&](const Grant& grant) {
      return grant.owner == owner && (shape == 0 || grant.shape_id == shape);
    }));
  }

  Scheduler scheduler;
  int64_t now = 1'000'000;
  bool start_works = true;
  bool starts_hang = false;  ///< those that do not work
  bool limit_reached = false;
  size_t started = 0;
  std::vector<Grant> leases;
  std::vector<ActorPlacement> placements;
  std::vector<Recall> recalls;
  std::vector<StopWorker> stops;
  std::vector<Refusal> refusals;
  std::vector<Reserved> reserved;
  std::vector<Eviction> evictions;
  bool commits = true;  ///< reservations at once
};

}  // namespace skate::node
