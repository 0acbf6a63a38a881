// The daemon's side of the fork server (python/skate/_fork_server.py).
//
// Starts it, asks it for workers, tells what became of each request and of each of its children. When it
// dies, requests that it had not answered count as "spawn", and the next request starts it anew, at most
// once a second; children of the dead one are the daemon's to reap. Home: the daemon's loop.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "node/exit_statuses.h"
#include "rt/fd.h"
#include "rt/task_group.h"

namespace skate::node {

struct WorkerSetup {
  uint64_t token{};
  std::string socket_path;
  std::map<std::string, std::string> env;
  std::string cwd;
  std::vector<std::string> sys_path;
  std::vector<std::string> argv;
  /// The request as JSON: to the fork server, or as the argument of a spawned worker.
  std::string json() const;
};

class ForkServer {
 public:
  struct Options {
    std::string python;
    std::vector<std::string> preload;
    std::string log_path;  ///< its own stdout and stderr
  };
  struct Events {
    std::function<void(uint64_t token, pid_t pid)> forked;
    std::function<void(uint64_t token, const std::string& reason)> spawn_instead;
    std::function<void(const std::string& line)> warning;
  };

  ForkServer(rt::Loop& loop, Options options, ExitStatuses& statuses, Events events);
  ~ForkServer();

  /// Starts it if it does not run.
  Result<void> start();
  /// Answered by Events::forked or spawn_instead.
  void fork(const WorkerSetup& setup, UniqueFd out, UniqueFd err);
  pid_t pid() const { return pid_; }

 private:
  struct Request {
    uint64_t token{};
    std::string json;
    UniqueFd out, err;
  };
  rt::Task<void> run();
  void send_next();
  void take(const std::string& message);
  void lost(const std::string& why);

  rt::Loop& loop_;
  Options options_;
  ExitStatuses& statuses_;
  Events events_;
  pid_t pid_{-1};
  UniqueFd socket_;
  std::unique_ptr<rt::FdWatch> watch_;
  std::deque<Request> unsent_;
  std::set<uint64_t> unanswered_;
  std::optional<rt::TimePoint> started_;
  std::unique_ptr<rt::TaskGroup> tasks_;
};

}  // namespace skate::node
