// Descriptors, processes and signals as things to await.
#pragma once

#include <sys/types.h>

#include <initializer_list>
#include <memory>

#include "base/result.h"
#include "base/unique_fd.h"
#include "rt/sync.h"
#include "rt/task.h"

namespace skate::rt {

/// Readiness of one descriptor, registered once. One waiter for each direction at a time.
/// Readiness is a hint: the descriptor must be non-blocking and the caller ready for EAGAIN.
class FdWatch {
 public:
  virtual ~FdWatch() = default;
  virtual Task<Result<void>> wait_readable() = 0;
  virtual Task<Result<void>> wait_writable() = 0;
};

/// Waits once; to wait repeatedly keep a watch of loop.watch_fd(fd).
Task<Result<void>> wait_readable(int fd);
Task<Result<void>> wait_writable(int fd);

/// The death of a process, whoever its parent is. Opening fails with kNotFound when it is gone already.
class ProcessWatch {
 public:
  static Result<ProcessWatch> open(pid_t pid);
  /// Returns when the process has ended; its parent can then reap it without blocking.
  Task<Result<void>> wait_end() const;
  Result<void> send_signal(int signal) const;
  int fd() const { return fd_.get(); }
  pid_t pid() const { return pid_; }

 private:
  ProcessWatch(pid_t pid, UniqueFd fd) : pid_(pid), fd_(std::move(fd)) {}
  pid_t pid_;
  UniqueFd fd_;
};

/// Signals as a stream. Blocks them for the calling thread, so construct it before any other thread starts.
class SignalSet {
 public:
  explicit SignalSet(std::initializer_list<int> signals);
  /// The next signal's number.
  Task<Result<int>> next();

 private:
  UniqueFd fd_;
};

Result<void> set_nonblocking(int fd);

}  // namespace skate::rt
