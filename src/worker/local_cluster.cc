#include "worker/local_cluster.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <ctime>
#include <filesystem>
#include <fstream>

#include "base/unique_fd.h"

extern char** environ;

namespace skate::worker {

namespace {

constexpr int kStopMs = 5000;

std::string text_in(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string tail_of(std::string text) {
  constexpr size_t kTailBytes = 2000;
  if (text.size() > kTailBytes) text.erase(0, text.size() - kTailBytes);
  return text;
}

/// Waits for a child of ours without taking away others' children; true when it has ended.
bool wait_child(pid_t pid, int timeout_ms) {
  UniqueFd fd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (fd) {
    pollfd watch{fd.get(), POLLIN, 0};
    while (poll(&watch, 1, timeout_ms) < 0 && errno == EINTR) {
    }
    if ((watch.revents & POLLIN) == 0) return false;
  }
  int status;
  return waitpid(pid, &status, fd ? 0 : WNOHANG) != 0;  // an error: somebody else has reaped it
}

}  // namespace

Result<std::unique_ptr<LocalCluster>> LocalCluster::prepare(const LocalClusterOptions& options) {
  std::unique_ptr<LocalCluster> cluster(new LocalCluster(options));
  std::error_code failed;
  std::filesystem::create_directories(options.session_base, failed);
  if (failed)
    return Error{ErrorCode::kIo,
                 "cannot make the directory " + options.session_base + ": " + failed.message()};
  uint8_t random[4];
  secure_random_bytes(random, sizeof random);
  char stamp[32];
  std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  std::strftime(stamp, sizeof stamp, "%Y-%m-%d_%H-%M-%S", &local);
  cluster->session_dir_ = options.session_base + "/session_" + stamp + "_" + to_hex(random, sizeof random);
  cluster->driver_ = static_cast<int>(getpid());
  return cluster;
}

LocalCluster::~LocalCluster() { stop(); }

Result<void> LocalCluster::start(int timeout_ms) {
  std::string key = session_dir_ + "/cluster.key";
  std::string watch = std::to_string(driver_);
  std::vector<std::string> control{
      "--session-dir", session_dir_, "--listen",   "unix:" + session_dir_ + "/control.sock",
      "--storage",     "memory",     "--key-file", key,
      "--watch-pid",   watch,        "--private"};
  if (options_.send_twice) control.push_back("--send-twice");
  SKATE_TRY_ASSIGN(control_address_, launch("control", std::move(control), &control_, timeout_ms));
  std::vector<std::string> arguments{"--session-dir",  session_dir_, "--control",
                                     control_address_, "--key-file", key,
                                     "--watch-pid",    watch,        "--head"};
  arguments.insert(arguments.end(), options_.node_arguments.begin(), options_.node_arguments.end());
  if (options_.send_twice) arguments.push_back("--send-twice");
  SKATE_TRY_ASSIGN([[maybe_unused]] std::string ready,
                   launch("node", std::move(arguments), &node_, timeout_ms));
  return {};
}

Result<std::string> LocalCluster::launch(const char* role, std::vector<std::string> arguments, pid_t* pid,
                                         int timeout_ms) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return errno_error("cannot make a pipe");
  UniqueFd read_end(ends[0]), write_end(ends[1]);
  constexpr int kReadyFd = 3;
  arguments.insert(arguments.begin(), {options_.skated, role});
  arguments.insert(arguments.end(), {"--ready-fd", std::to_string(kReadyFd)});
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  // The control service makes the session's directory, and goes on in a file there itself.
  const std::string path = session_dir_ + "/logs/" + role + ".err";
  const bool is_first = control_address_.empty();
  UniqueFd log(is_first ? memfd_create("skate-daemon-start", MFD_CLOEXEC)
                        : open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!log) return errno_error("cannot make a file for what skated " + std::string(role) + " prints");

  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  // The pipe's end may be number 3 itself: dup2 onto itself clears close-on-exec, as wanted.
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), kReadyFd);
  posix_spawn_file_actions_adddup2(&actions, log.get(), 1);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  // A session of its own: Ctrl-C at the driver's terminal is the driver's.
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
  int failed = posix_spawn(pid, options_.skated.c_str(), &actions, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (failed != 0) {
    errno = failed;
    *pid = 0;
    return errno_error("cannot start " + options_.skated);
  }
  write_end.reset();
  std::string line;
  auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  while (line.find('\n') == std::string::npos) {
    auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd watch{read_end.get(), POLLIN, 0};
    int ready = left.count() <= 0 ? 0 : poll(&watch, 1, static_cast<int>(left.count()));
    if (ready < 0 && errno == EINTR) continue;
    char buffer[512];
    ssize_t n = ready > 0 ? read(read_end.get(), buffer, sizeof buffer) : 0;
    if (n > 0) {
      line.append(buffer, static_cast<size_t>(n));
      continue;
    }
    return Error{
        ErrorCode::kUnavailable,
        std::string("skated ") + role +
            (ready > 0 ? " ended while it started" : " did not get ready in time") +
            "; its output ends with:\n" +
            tail_of((is_first ? text_in("/proc/self/fd/" + std::to_string(log.get())) : "") + text_in(path))};
  }
  return line.substr(0, line.find('\n'));
}

void LocalCluster::stop() {
  if (driver_ != static_cast<int>(getpid())) return;
  // The node first: it ends its workers, and tells control.
  for (pid_t* pid : {&node_, &control_}) {
    if (*pid <= 0) continue;
    kill(*pid, SIGTERM);
    if (!wait_child(*pid, kStopMs)) {
      kill(*pid, SIGKILL);
      wait_child(*pid, kStopMs);
    }
    *pid = 0;
  }
  if (!session_dir_.empty()) {
    std::error_code ignored;  // the node daemon removes it too; what remains here is removed here
    std::filesystem::remove_all(session_dir_, ignored);
    session_dir_.clear();
  }
}

}  // namespace skate::worker
