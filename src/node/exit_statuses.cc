#include "node/exit_statuses.h"

#include <sys/resource.h>
#include <sys/wait.h>

#include "rt/sleep.h"

namespace skate::node {

void ExitStatuses::report(pid_t pid, ExitStatus status) {
  auto found = statuses_.find(pid);
  if (found == statuses_.end()) return;
  found->second = status;
  changed_.wake_all();
}

void ExitStatuses::reap() {
  int status = 0;
  rusage used{};
  while (pid_t pid = ::wait4(-1, &status, WNOHANG, &used)) {
    if (pid < 0) return;  // no children
    ExitStatus out;
    out.peak_bytes = static_cast<uint64_t>(used.ru_maxrss) * 1024;
    if (WIFEXITED(status)) out.code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) out.signal = WTERMSIG(status);
    report(pid, out);
  }
}

rt::Task<void> ExitStatuses::wait_for(pid_t pid) {
  while (statuses_.count(pid) && !statuses_[pid]) co_await changed_.wait();
}

rt::Task<std::optional<ExitStatus>> ExitStatuses::take(pid_t pid, rt::Duration timeout) {
  reap();
  rt::Task<void> wait = wait_for(pid);
  Result<void> in_time = co_await rt::with_timeout<void>(timeout, std::move(wait));
  std::optional<ExitStatus> status;
  if (auto found = statuses_.find(pid); found != statuses_.end()) {
    status = found->second;
    statuses_.erase(found);
  }
  (void)in_time;  // without a status the answer is the same
  co_return status;
}

}  // namespace skate::node
