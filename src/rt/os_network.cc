#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstring>

#include "rt/fd.h"
#include "rt/stream.h"

namespace skate::rt {
namespace {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
  int family = AF_UNSPEC;
  std::string unix_path;  // empty unless a path in the file system
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

Result<SocketAddress> parse_address(const std::string& text) {
  SocketAddress address;
  if (text.starts_with("unix:")) {
    const std::string path = text.substr(5);
    auto& out = reinterpret_cast<sockaddr_un&>(address.storage);
    if (path.empty() || path.size() >= sizeof(out.sun_path))
      return Error{ErrorCode::kInvalid, "a Unix socket's path has 1 to 107 bytes: '" + text + "'"};
    out.sun_family = address.family = AF_UNIX;
    std::memcpy(out.sun_path, path.data(), path.size());
    address.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
    if (path[0] == '@') {
      out.sun_path[0] = '\0';
    } else {
      address.size += 1;
      address.unix_path = path;
    }
    return address;
  }
  const size_t colon = text.rfind(':');
  if (text.starts_with("tcp:") && colon > 4) {
    std::string host = text.substr(4, colon - 4);
    if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
    uint16_t port = 0;
    const char* end = text.data() + text.size();
    const auto parsed = std::from_chars(text.data() + colon + 1, end, port);
    auto& v4 = reinterpret_cast<sockaddr_in&>(address.storage);
    auto& v6 = reinterpret_cast<sockaddr_in6&>(address.storage);
    if (parsed.ec == std::errc() && parsed.ptr == end) {
      if (inet_pton(AF_INET, host.c_str(), &v4.sin_addr) == 1) {
        v4.sin_family = address.family = AF_INET;
        v4.sin_port = htons(port);
        address.size = sizeof(v4);
        return address;
      }
      if (inet_pton(AF_INET6, host.c_str(), &v6.sin6_addr) == 1) {
        v6.sin6_family = address.family = AF_INET6;
        v6.sin6_port = htons(port);
        address.size = sizeof(v6);
        return address;
      }
    }
  }
  return Error{ErrorCode::kInvalid,
               "not an address (unix:PATH or tcp:HOST:PORT with a numeric host): '" + text + "'"};
}

std::string describe(const sockaddr_storage& storage) {
  char host[INET6_ADDRSTRLEN] = {};
  if (storage.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(storage);
    inet_ntop(AF_INET, &v4.sin_addr, host, sizeof(host));
    return "tcp:" + std::string(host) + ":" + std::to_string(ntohs(v4.sin_port));
  }
  if (storage.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(storage);
    inet_ntop(AF_INET6, &v6.sin6_addr, host, sizeof(host));
    return "tcp:[" + std::string(host) + "]:" + std::to_string(ntohs(v6.sin6_port));
  }
  return "unix";
}

Error peer_gone(const char* what) {
  Error error = errno_error(what);
  error.code = ErrorCode::kUnavailable;
  return error;
}

class SocketStream final : public Stream {
 public:
  SocketStream(Loop& loop, UniqueFd fd) : fd_(std::move(fd)), watch_(loop.watch_fd(fd_.get())) {
    sockaddr_storage storage{};
    socklen_t size = sizeof(storage);
    if (getpeername(fd_.get(), reinterpret_cast<sockaddr*>(&storage), &size) == 0) peer_ = describe(storage);
    const int on = 1;
    if (storage.ss_family == AF_INET || storage.ss_family == AF_INET6)
      setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  }

  Task<Result<size_t>> read(std::span<uint8_t> buffer) override {
    while (true) {
      const ssize_t got = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
      if (got >= 0) co_return static_cast<size_t>(got);
      if (errno != EAGAIN && errno != EINTR) co_return peer_gone("cannot read from the peer");
      Result<void> ready = co_await watch_->wait_readable();
      if (!ready) co_return ready.error();
    }
  }
  Task<Result<void>> write(std::span<const uint8_t> bytes) override {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent >= 0) {
        bytes = bytes.subspan(static_cast<size_t>(sent));
        continue;
      }
      if (errno != EAGAIN && errno != EINTR) co_return peer_gone("cannot write to the peer");
      Result<void> ready = co_await watch_->wait_writable();
      if (!ready) co_return ready.error();
    }
    co_return Result<void>();
  }
  void close() override { ::shutdown(fd_.get(), SHUT_RDWR); }
  std::string peer() const override { return peer_; }

 private:
  UniqueFd fd_;
  std::unique_ptr<FdWatch> watch_;  // goes before the descriptor closes
  std::string peer_ = "unix";
};

class SocketListener final : public Listener {
 public:
  SocketListener(Loop& loop, UniqueFd fd, std::string address, std::string unix_path)
      : loop_(loop),
        fd_(std::move(fd)),
        watch_(loop.watch_fd(fd_.get())),
        address_(std::move(address)),
        unix_path_(std::move(unix_path)) {}
  ~SocketListener() override {
    if (!unix_path_.empty()) ::unlink(unix_path_.c_str());
  }
  Task<Result<std::unique_ptr<Stream>>> accept() override {
    while (true) {
      UniqueFd fd(::accept4(fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (fd) co_return std::unique_ptr<Stream>(std::make_unique<SocketStream>(loop_, std::move(fd)));
      if (errno == EMFILE || errno == ENFILE)
        co_return Error{ErrorCode::kFull, "no descriptor is left for a connection"};
      if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
        co_return errno_error("cannot accept a connection");
      Result<void> ready = co_await watch_->wait_readable();
      if (!ready) co_return ready.error();
    }
  }
  std::string address() const override { return address_; }

 private:
  Loop& loop_;
  UniqueFd fd_;
  std::unique_ptr<FdWatch> watch_;
  std::string address_;
  std::string unix_path_;
};

class OsNetwork final : public Network {
 public:
  explicit OsNetwork(Loop& loop) : loop_(loop) {}

  Task<Result<std::unique_ptr<Stream>>> connect(std::string text) override {
    Result<SocketAddress> address = parse_address(text);
    if (!address) co_return address.error();
    UniqueFd fd(::socket(address->family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd) co_return errno_error("cannot make a socket");
    if (::connect(fd.get(), address->get(), address->size) != 0) {
      if (errno != EINPROGRESS) co_return peer_gone(("cannot connect to " + text).c_str());
      Result<void> ready = co_await wait_writable(fd.get());
      if (!ready) co_return ready.error();
      int failure = 0;
      socklen_t size = sizeof(failure);
      getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &failure, &size);
      errno = failure;
      if (failure != 0) co_return peer_gone(("cannot connect to " + text).c_str());
    }
    co_return make_stream(loop_, std::move(fd));
  }

  Result<std::unique_ptr<Listener>> listen(std::string text) override {
    SKATE_TRY_ASSIGN(SocketAddress address, parse_address(text));
    UniqueFd fd(::socket(address.family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd) return errno_error("cannot make a socket");
    const int on = 1;
    if (address.family != AF_UNIX) setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (!address.unix_path.empty()) {
      SKATE_TRY(remove_dead_socket(address));
      fchmod(fd.get(), 0600);  // Linux gives the path the socket's mode, so that it is never open to others
    }
    if (::bind(fd.get(), address.get(), address.size) != 0) return errno_error("cannot bind " + text);
    if (::listen(fd.get(), SOMAXCONN) != 0) return errno_error("cannot listen on " + text);
    if (address.family != AF_UNIX) {
      sockaddr_storage bound{};
      socklen_t size = sizeof(bound);
      if (getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &size) != 0)
        return errno_error("cannot name the socket");
      text = describe(bound);
    }
    return std::unique_ptr<Listener>(std::make_unique<SocketListener>(loop_, std::move(fd), std::move(text),
                                                                      std::move(address.unix_path)));
  }

 private:
  static Result<void> remove_dead_socket(const SocketAddress& address) {
    struct stat info {};
    if (::lstat(address.unix_path.c_str(), &info) != 0) return {};
    if (!S_ISSOCK(info.st_mode))
      return Error{ErrorCode::kExists, address.unix_path + " exists and is no socket"};
    UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (::connect(probe.get(), address.get(), address.size) == 0 || errno == EAGAIN)
      return Error{ErrorCode::kExists, "another process listens on " + address.unix_path};
    ::unlink(address.unix_path.c_str());
    return {};
  }
  Loop& loop_;
};

}  // namespace

std::unique_ptr<Network> make_network(Loop& loop) { return std::make_unique<OsNetwork>(loop); }

std::unique_ptr<Stream> make_stream(Loop& loop, UniqueFd socket) {
  // A socket that cannot be made non-blocking is closed already: the first read says so.
  if (Result<void> result = set_nonblocking(socket.get()); !result) socket.reset();
  return std::make_unique<SocketStream>(loop, std::move(socket));
}

Task<Result<void>> read_exactly(Stream* stream, std::span<uint8_t> buffer) {
  while (!buffer.empty()) {
    Result<size_t> got = co_await stream->read(buffer);
    if (!got) co_return got.error();
    if (*got == 0) co_return Error{ErrorCode::kUnavailable, "the peer closed the connection"};
    buffer = buffer.subspan(*got);
  }
  co_return Result<void>();
}

}  // namespace skate::rt
