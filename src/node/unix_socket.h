// The daemon's Unix socket: accept, who is there, frames, and descriptors beside them.
//
// A frame is four bytes of length, little-endian, and as many bytes. Home: the loop of the calling task.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "rt/fd.h"

namespace skate::node {

inline constexpr uint32_t kFrameBytesMax = 64u << 20;

/// Listens at `path`, mode 0600. A socket that a dead daemon left there is replaced; kExists for a live one.
Result<UniqueFd> listen_unix(const std::string& path);

struct PeerCredentials {
  pid_t pid{};
  uid_t uid{};
};
Result<PeerCredentials> credentials_of(int socket);

rt::Task<Result<UniqueFd>> accept_unix(int listener, rt::FdWatch* watch);
rt::Task<Result<std::string>> read_frame(int socket, rt::FdWatch* watch);
/// `fds` travel with the first byte.
rt::Task<Result<void>> write_frame(int socket, rt::FdWatch* watch, std::string body, std::vector<int> fds);

}  // namespace skate::node
