// JobTable: drivers and their jobs. Ids are counted, and never given twice, also across restarts. Pure.
#pragma once

#include <deque>
#include <map>

#include "base/result.h"
#include "control/core/outbox.h"

namespace skate::control {

struct JobRecord {
  JobId job;
  wire::Address driver;
  int32_t pid{};
  std::string name_space;
  std::string job_json;
  int64_t began_ms{};  ///< wall clock
  int64_t ended_ms{};  ///< 0 while it runs
  bool failed{};
};

class JobTable {
 public:
  static constexpr size_t kFinishedKept = 1000;

  wire::RegisterJobReply add(const wire::RegisterJob& request, int64_t unix_time_ms, Outbox& out);
  /// False when it is not known, or has ended before.
  bool finish(const JobId& job, bool failed, int64_t unix_time_ms, Outbox& out);
  const JobRecord* find(const JobId& job) const;
  bool has_ended(const JobId& job) const;
  const std::map<JobId, JobRecord>& all() const { return jobs_; }
  std::vector<JobId> running_on(const NodeId& node) const;

  void recover(JobRecord record);
  void recover_counter(uint32_t last) { last_ = std::max(last_, last); }

 private:
  uint32_t last_ = 0;
  std::map<JobId, JobRecord> jobs_;
  std::deque<JobId> finished_;
};

/// The row of the meta table that holds the last job's number.
inline constexpr char kLastJobKey[] = "last_job";

}  // namespace skate::control
