// LocalCluster: the daemons of a private cluster, started for one driver and ended with it.
//
// Owner: the driver's connection. Both daemons also watch the driver's process themselves, so that a driver
// that is killed leaves nothing; `stop` is the orderly way.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

namespace skate::worker {

struct LocalClusterOptions {
  std::string skated;        ///< path of the daemon's binary
  std::string session_base;  ///< directory under which the session's directory is made
  std::vector<std::string> node_arguments;
  bool send_twice = false;  ///< for tests: messages between the daemons that may be repeated are
};

class LocalCluster {
 public:
  /// Names the session. Its directory is made, and in the end removed, by the control service: that one
  /// outlives this process, at whatever moment it is killed.
  static Result<std::unique_ptr<LocalCluster>> prepare(const LocalClusterOptions& options);
  ~LocalCluster();
  LocalCluster(const LocalCluster&) = delete;
  LocalCluster& operator=(const LocalCluster&) = delete;

  /// Starts both daemons; returns when the node has registered. Bounded by `timeout_ms` each.
  Result<void> start(int timeout_ms);
  /// Ends both daemons and waits for them; kills what does not end in time.
  void stop();

  const std::string& session_dir() const { return session_dir_; }
  std::string socket_path() const { return session_dir_ + "/node.sock"; }
  std::string control_address() const { return control_address_; }

 private:
  explicit LocalCluster(LocalClusterOptions options) : options_(std::move(options)) {}
  Result<std::string> launch(const char* role, std::vector<std::string> arguments, pid_t* pid,
                             int timeout_ms);

  LocalClusterOptions options_;
  std::string session_dir_;
  std::string control_address_;
  pid_t control_ = 0;
  pid_t node_ = 0;
  int driver_ = 0;  ///< only the process that started them may end them
};

}  // namespace skate::worker
