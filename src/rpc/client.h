// Client: one connection to a server, kept up: after a loss it connects again, with growing pauses.
//
// Calls that may be repeated (reads, and changes that carry an idempotency key) wait through a loss and are
// sent again, in their first order, until their deadline. Calls that may not be repeated fail with
// kUnavailable when the connection is lost while they are out. After each connect `greet` runs first; its own
// calls go out at once, all others wait for it. Lives on its loop's thread, and outlives the tasks that call
// it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "rpc/admission.h"
#include "rpc/connection.h"
#include "rpc/key.h"

namespace skate::rpc {

enum class OnLoss : uint8_t { kResend, kFail };

struct CallOptions {
  /// How long the caller waits in all; zero: as long as the client lives.
  rt::Duration timeout = std::chrono::seconds(30);
  OnLoss on_loss = OnLoss::kResend;
  /// Only inside `greet`.
  bool greeting = false;
};

class Client;

struct ClientOptions {
  std::string address;
  ClusterKey key;
  std::string release;
  TcpSecurity tcp = TcpSecurity::kTls;
  /// Shared with the daemon's other clients and servers; made of the key when it is needed and not there.
  std::shared_ptr<TlsContext> tls{};
  ConnectionLimits limits{};
  rt::Duration handshake_timeout = std::chrono::seconds(5);
  rt::Duration backoff_min = std::chrono::milliseconds(5);
  rt::Duration backoff_max = std::chrono::seconds(1);
  /// Calls under way; one more fails with kFull.
  size_t calls_max = 1u << 20;
  /// For tests: what may be repeated goes out twice, as it can after a loss.
  bool send_twice = false;
  /// Runs after each connect, before held calls go out; an error drops the connection and tries again.
  std::function<rt::Task<Result<void>>(Client*)> greet{};
  std::function<void(uint16_t topic, std::string body)> on_notify{};
  /// Told of each change; the error says why it is down.
  std::function<void(bool up, const Error& why)> on_state{};
};

class Client {
 public:
  Client(rt::Loop& loop, rt::Network& network, ClientOptions options);
  ~Client();

  /// Connects in the background, for good. kDenied and kInvalid (wrong key, other release) are tried again
  /// too, as the server may be replaced; on_state tells.
  void start();
  /// Fails all calls with kCancelled.
  void stop();

  rt::Task<Result<std::string>> call(uint16_t method, std::string body, CallOptions options = {});
  /// A call that may be repeated, without deadline, whose place in the order is that of this call; `done`
  /// gets the answer, and is not called any more once stopped; it must not stop the client. Not bounded here.
  void post(uint16_t method, std::string body, std::function<void(Result<std::string>)> done);
  /// Greeted and ready.
  bool up() const { return up_; }
  /// Waits until up() is true.
  rt::Task<void> wait_up() { return up_event_.wait(); }
  size_t calls_under_way() const { return calls_.size(); }

 private:
  struct Call {
    FrameHeader header;
    std::string body;
    CallOptions options;
    rt::TimePoint deadline;
    bool sent = false;
    std::optional<Result<std::string>> result;
    rt::Event done;
    std::function<void(Result<std::string>)> posted{};  ///< told instead of `result`
  };

  rt::Task<void> run();
  rt::Task<Result<void>> run_connection();
  rt::Task<void> greet_and_open();
  rt::Task<Result<std::string>> wait_done(std::shared_ptr<Call> call);
  void send(Call& call);
  void finish(uint64_t id, Result<std::string> result);
  void lose(const Error& why);

  rt::Loop& loop_;
  rt::Network& network_;
  ClientOptions options_;
  std::unique_ptr<Connection> connection_;
  bool up_ = false;
  bool stopped_ = false;
  rt::Event up_event_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, std::shared_ptr<Call>> calls_;  // shared with the coroutine that waits for it
  rt::TaskGroup tasks_;
};

}  // namespace skate::rpc
