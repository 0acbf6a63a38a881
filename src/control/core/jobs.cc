#include "control/core/jobs.h"

#include <algorithm>
#include <cstring>

namespace skate::control {
namespace {

JobId job_of(uint32_t number) {
  uint8_t bytes[4];
  for (int i = 0; i < 4; ++i) bytes[i] = static_cast<uint8_t>(number >> (8 * i));
  return JobId::from_bytes(bytes);
}

/// A name nobody else has, in the form of a UUID, from the driver's random id.
std::string anonymous_name_space(const WorkerId& driver, const JobId& job) {
  uint8_t bytes[16];
  std::memcpy(bytes, driver.data(), sizeof(bytes));
  for (size_t i = 0; i < 4; ++i) bytes[12 + i] ^= job.bytes[i];
  bytes[6] = static_cast<uint8_t>((bytes[6] & 0x0F) | 0x40);
  bytes[8] = static_cast<uint8_t>((bytes[8] & 0x3F) | 0x80);
  std::string text = to_hex(bytes, sizeof(bytes));
  for (const size_t at : {20, 16, 12, 8}) text.insert(at, "-");
  return text;
}

}  // namespace

wire::RegisterJobReply JobTable::add(const wire::RegisterJob& request, int64_t unix_time_ms, Outbox& out) {
  JobRecord record;
  record.job = job_of(++last_);
  record.driver = request.driver;
  record.pid = request.pid;
  record.name_space = request.name_space.empty() ? anonymous_name_space(request.driver.worker, record.job)
                                                 : request.name_space;
  record.job_json = request.job_json;
  record.began_ms = unix_time_ms;
  out.put(Table::kMeta, std::string(kLastJobKey), last_);
  out.put(Table::kJobs, record.job, record);
  wire::RegisterJobReply reply{record.job, record.name_space};
  jobs_[record.job] = std::move(record);
  return reply;
}

bool JobTable::finish(const JobId& job, bool failed, int64_t unix_time_ms, Outbox& out) {
  const auto found = jobs_.find(job);
  if (found == jobs_.end() || found->second.ended_ms != 0) return false;
  found->second.ended_ms = std::max<int64_t>(unix_time_ms, 1);
  found->second.failed = failed;
  out.put(Table::kJobs, job, found->second);
  finished_.push_back(job);
  if (finished_.size() > kFinishedKept) {
    out.erase(Table::kJobs, finished_.front());
    jobs_.erase(finished_.front());
    finished_.pop_front();
  }
  return true;
}

const JobRecord* JobTable::find(const JobId& job) const {
  const auto found = jobs_.find(job);
  return found == jobs_.end() ? nullptr : &found->second;
}

bool JobTable::has_ended(const JobId& job) const {
  const JobRecord* record = find(job);
  return record != nullptr && record->ended_ms != 0;
}

std::vector<JobId> JobTable::running_on(const NodeId& node) const {
  std::vector<JobId> out;
  for (const auto& [id, job] : jobs_) {
    if (job.ended_ms == 0 && job.driver.node == node) out.push_back(id);
  }
  return out;
}

void JobTable::recover(JobRecord record) {
  if (record.ended_ms != 0) finished_.push_back(record.job);
  jobs_[record.job] = std::move(record);
}

}  // namespace skate::control
