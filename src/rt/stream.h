// Stream, Listener, Network: byte streams between processes, real (Unix, TCP) or simulated.
//
// TLS is a Stream around a Stream. Addresses are text: "unix:/path", "unix:@abstract" or "tcp:HOST:PORT" with
// a numeric host.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "rt/task.h"

namespace skate::rt {

/// One connection. One reader and one writer at a time.
class Stream {
 public:
  virtual ~Stream() = default;
  /// At least one byte; 0 at the peer's end of stream.
  virtual Task<Result<size_t>> read(std::span<uint8_t> buffer) = 0;
  /// All of `bytes`, which must stay valid until then.
  virtual Task<Result<void>> write(std::span<const uint8_t> bytes) = 0;
  /// Ends both directions; reads and writes under way return kUnavailable.
  virtual void close() = 0;
  /// For logs: "unix", "tcp 127.0.0.1:4711".
  virtual std::string peer() const = 0;
};

class Listener {
 public:
  virtual ~Listener() = default;
  virtual Task<Result<std::unique_ptr<Stream>>> accept() = 0;
  /// The bound address, with the port that the system chose for "tcp:HOST:0".
  virtual std::string address() const = 0;
};

class Network {
 public:
  virtual ~Network() = default;
  virtual Task<Result<std::unique_ptr<Stream>>> connect(std::string address) = 0;
  virtual Result<std::unique_ptr<Listener>> listen(std::string address) = 0;
};

/// The operating system's sockets. A Unix socket's path is created with mode 0600 and replaces a dead one.
std::unique_ptr<Network> make_network(Loop& loop);

/// A connected socket (made non-blocking) as a Stream.
std::unique_ptr<Stream> make_stream(Loop& loop, UniqueFd socket);

/// Fills `buffer`; kUnavailable when the stream ends before.
Task<Result<void>> read_exactly(Stream* stream, std::span<uint8_t> buffer);

}  // namespace skate::rt
