#include "rt/fd.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace skate::rt {

Task<Result<void>> wait_readable(int fd) {
  Loop& loop = co_await this_loop();
  std::unique_ptr<FdWatch> watch = loop.watch_fd(fd);
  co_return co_await watch->wait_readable();
}

Task<Result<void>> wait_writable(int fd) {
  Loop& loop = co_await this_loop();
  std::unique_ptr<FdWatch> watch = loop.watch_fd(fd);
  co_return co_await watch->wait_writable();
}

Result<ProcessWatch> ProcessWatch::open(pid_t pid) {
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (fd >= 0) return ProcessWatch(pid, UniqueFd(fd));
  if (errno == ESRCH)
    return Error{ErrorCode::kNotFound, "process " + std::to_string(pid) + " does not exist"};
  return errno_error("cannot watch process " + std::to_string(pid));
}

Task<Result<void>> ProcessWatch::wait_end() const { return wait_readable(fd_.get()); }

Result<void> ProcessWatch::send_signal(int signal) const {
  if (syscall(SYS_pidfd_send_signal, fd_.get(), signal, nullptr, 0) == 0) return {};
  if (errno == ESRCH) return Error{ErrorCode::kNotFound, "process " + std::to_string(pid_) + " has ended"};
  return errno_error("cannot signal process " + std::to_string(pid_));
}

SignalSet::SignalSet(std::initializer_list<int> signals) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : signals) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  fd_.reset(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
}

Task<Result<int>> SignalSet::next() {
  if (!fd_) co_return Error{ErrorCode::kIo, "no descriptor for signals is left"};
  while (true) {
    signalfd_siginfo info{};
    const ssize_t got = ::read(fd_.get(), &info, sizeof(info));
    if (got == sizeof(info)) co_return static_cast<int>(info.ssi_signo);
    if (got < 0 && errno != EAGAIN && errno != EINTR) co_return errno_error("cannot read signals");
    Result<void> ready = co_await wait_readable(fd_.get());
    if (!ready) co_return ready.error();
  }
}

Result<void> set_nonblocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
    return errno_error("cannot make a descriptor non-blocking");
  return {};
}

}  // namespace skate::rt
