// Committer: group commit. Rows are numbered as they come; while one batch is being written the next gathers.
// A write that fails is tried again with growing pauses: nothing is acknowledged meanwhile. Lives on its
// loop.
#pragma once

#include <functional>

#include "control/storage.h"
#include "rt/task_group.h"

namespace skate::control {

class Committer {
 public:
  Committer(rt::Loop& loop, Storage& storage, std::function<void(std::string)> log);

  /// The number to wait for: everything appended so far, these rows included.
  uint64_t append(std::vector<Row> rows);
  bool is_committed(uint64_t number) const { return number <= committed_; }
  rt::Task<void> wait(uint64_t number);

 private:
  rt::Task<void> run();

  Storage& storage_;
  std::function<void(std::string)> log_;
  std::vector<Row> gathering_;
  uint64_t appended_ = 0;
  uint64_t committed_ = 0;
  rt::WaitList appended_more_;
  rt::WaitList committed_more_;
  rt::TaskGroup tasks_;
};

}  // namespace skate::control
