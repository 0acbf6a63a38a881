#include "node/unix_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace skate::node {

Result<UniqueFd> listen_unix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return Error{ErrorCode::kInvalid,
                 "the path of the session directory is too long for a Unix socket: " + path};
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return errno_error("cannot make a socket");
  UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (::connect(probe.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 || errno == EAGAIN)
    return Error{ErrorCode::kExists, "another daemon listens at " + path};
  ::unlink(path.c_str());
  ::fchmod(fd.get(), 0600);  // Linux gives the path the socket's mode: it is never open to others
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    return errno_error("cannot bind " + path);
  if (::listen(fd.get(), SOMAXCONN) != 0) return errno_error("cannot listen at " + path);
  return fd;
}

Result<PeerCredentials> credentials_of(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
    return errno_error("cannot tell who connected");
  return PeerCredentials{peer.pid, peer.uid};
}

rt::Task<Result<UniqueFd>> accept_unix(int listener, rt::FdWatch* watch) {
  while (true) {
    UniqueFd fd(::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (fd) co_return fd;
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
      co_return errno_error("cannot accept a process");
    Result<void> ready = co_await watch->wait_readable();
    if (!ready) co_return ready.error();
  }
}

namespace {
rt::Task<Result<void>> read_all(int socket, rt::FdWatch* watch, char* data, size_t size) {
  while (size > 0) {
    ssize_t got = ::recv(socket, data, size, 0);
    if (got == 0) co_return Error{ErrorCode::kUnavailable, "the process closed its connection"};
    if (got > 0) {
      data += got;
      size -= static_cast<size_t>(got);
      continue;
    }
    if (errno != EAGAIN && errno != EINTR) co_return errno_error("cannot read from a process");
    Result<void> ready = co_await watch->wait_readable();
    if (!ready) co_return ready.error();
  }
  co_return Result<void>();
}
}  // namespace

rt::Task<Result<std::string>> read_frame(int socket, rt::FdWatch* watch) {
  uint32_t size = 0;
  Result<void> head = co_await read_all(socket, watch, reinterpret_cast<char*>(&size), sizeof size);
  if (!head) co_return head.error();
  if (size > kFrameBytesMax)
    co_return Error{ErrorCode::kCorrupt, "a frame of " + std::to_string(size) + " bytes"};
  std::string body(size, '\0');
  Result<void> rest = co_await read_all(socket, watch, body.data(), body.size());
  if (!rest) co_return rest.error();
  co_return body;
}

rt::Task<Result<void>> write_frame(int socket, rt::FdWatch* watch, std::string body, std::vector<int> fds) {
  uint32_t size = static_cast<uint32_t>(body.size());
  body.insert(0, reinterpret_cast<const char*>(&size), sizeof size);
  std::string control(CMSG_SPACE(fds.size() * sizeof(int)), '\0');
  size_t done = 0;
  while (done < body.size()) {
    iovec part{body.data() + done, body.size() - done};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (done == 0 && !fds.empty()) {
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
      std::memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
    }
    ssize_t sent = ::sendmsg(socket, &message, MSG_NOSIGNAL);
    if (sent > 0) {
      done += static_cast<size_t>(sent);
      continue;
    }
    if (errno != EAGAIN && errno != EINTR) co_return errno_error("cannot write to a process");
    Result<void> ready = co_await watch->wait_writable();
    if (!ready) co_return ready.error();
  }
  co_return Result<void>();
}

}  // namespace skate::node
