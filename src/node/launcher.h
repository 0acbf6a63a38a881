// Starts programs: in a session of their own, no signal blocked, no descriptor inherited but those named.
#pragma once

#include <sys/types.h>

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace skate::node {

struct LaunchSpec {
  std::vector<std::string> command;                       ///< command[0] is looked up in PATH
  std::map<std::string, std::optional<std::string>> env;  ///< changes to our own; no value removes
  std::string cwd;
  std::vector<std::pair<int, int>> fds;  ///< (ours, number in the child)
};

Result<pid_t> launch(const LaunchSpec& spec);

struct Pipe {
  UniqueFd read, write;
};
Result<Pipe> make_pipe();
struct SocketPair {
  UniqueFd ours, theirs;
};
Result<SocketPair> make_packet_pair();

}  // namespace skate::node
