// How processes ended. Each process that may die is expected() first; its status comes from our own reaping
// (children, and orphans that the subreaper inherited) or from the fork server's report, whichever knows.
//
// reap() also clears away children that nobody expects, so that no zombie stays. Home: the daemon's loop.
#pragma once

#include <sys/types.h>

#include <map>
#include <optional>

#include "rt/sync.h"
#include "rt/task.h"
#include "rt/time.h"

namespace skate::node {

struct ExitStatus {
  int32_t code{};
  int32_t signal{};
  uint64_t peak_bytes{};  ///< the most memory that it ever held
};

class ExitStatuses {
 public:
  void expect(pid_t pid) { statuses_.try_emplace(pid); }
  void report(pid_t pid, ExitStatus status);
  /// Reaps all children that have ended; call on SIGCHLD.
  void reap();
  /// The status of an expected process that has ended, or nothing when nobody learns it in time.
  rt::Task<std::optional<ExitStatus>> take(pid_t pid, rt::Duration timeout);

 private:
  rt::Task<void> wait_for(pid_t pid);
  std::map<pid_t, std::optional<ExitStatus>> statuses_;
  rt::WaitList changed_;
};

}  // namespace skate::node
