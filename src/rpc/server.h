// Server: answers requests of authenticated peers, and pushes notifications to them.
//
// A stranger costs one descriptor and a few hundred bytes for at most handshake_timeout, there are at most
// strangers_max of them, and failed handshakes are logged as one line per log_interval. Over TCP there is TLS
// (admission.h). A request is a task
// of its own; it is cancelled at its deadline and when its connection ends, so work that must not be cut in
// two goes through a DedupTable. Lives on its loop's thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "rpc/admission.h"
#include "rpc/connection.h"
#include "rpc/key.h"

namespace skate::rpc {

struct ServerOptions {
  ClusterKey key;
  std::string release;
  TcpSecurity tcp = TcpSecurity::kTls;
  /// Shared with the daemon's other servers and clients; made of the key when it is needed and not there.
  std::shared_ptr<TlsContext> tls{};
  /// Gives the key to who has a join token, on addresses with TLS.
  bool joins = false;
  ConnectionLimits limits{};
  size_t strangers_max = 64;
  size_t peers_max = 16384;
  rt::Duration handshake_timeout = std::chrono::seconds(5);
  /// Requests of one peer that run at a time; more wait in its socket.
  size_t requests_max = 4096;
  rt::Duration log_interval = std::chrono::seconds(10);
  std::function<void(std::string)> log{};  ///< may be empty
};

/// One authenticated connection, as a service sees it. Shared by the server, while connected, and by services
/// that push to it; afterwards notify() returns false.
class Peer {
 public:
  uint64_t id() const { return id_; }
  bool notify(uint16_t topic, std::string_view body);
  void close();
  bool connected() const { return connection_ != nullptr; }

 private:
  friend class Server;
  uint64_t id_ = 0;
  std::unique_ptr<Connection> connection_;
};

struct Request {
  uint16_t method{};
  std::string body;
};

class Service {
 public:
  virtual ~Service() = default;
  /// Called in the order of arrival: what it does before it returns the task (when it is no coroutine itself)
  /// keeps the peer's order; the tasks then run side by side.
  virtual rt::Task<Result<std::string>> call(std::shared_ptr<Peer> peer, Request request) = 0;
  virtual void connected(Peer& peer) = 0;
  /// Its requests have been cancelled. Not called for peers that are there when the server stops.
  virtual void disconnected(Peer& peer) = 0;
};

class Server {
 public:
  Server(rt::Loop& loop, Service& service, ServerOptions options);
  ~Server();

  /// Starts to accept; returns the bound address. May be called for several addresses.
  Result<std::string> listen(rt::Network& network, std::string address);
  /// Closes all connections and cancels what runs.
  void stop();

  struct Counts {
    uint64_t accepted = 0;
    uint64_t turned_away = 0;
    uint64_t refused = 0;  ///< failed the handshake, or took too long
    uint64_t joined = 0;   ///< got the key for a token
    size_t strangers = 0;
    size_t peers = 0;
  };
  const Counts& counts() const { return counts_; }

 private:
  rt::Task<void> accept_loop(std::unique_ptr<rt::Listener> listener, Follows follows);
  rt::Task<void> serve(std::unique_ptr<rt::Stream> stream, Follows follows);
  rt::Task<void> serve_peer(std::shared_ptr<Peer> peer);
  rt::Task<void> answer(std::shared_ptr<Peer> peer, FrameHeader header, rt::Task<Result<std::string>> work,
                        rt::WaitList* ended);
  void log_refusal(const Error& error);

  rt::Loop& loop_;
  Service& service_;
  ServerOptions options_;
  Counts counts_;
  uint64_t next_peer_ = 1;
  uint64_t refusals_unlogged_ = 0;
  rt::TimePoint next_log_{};
  std::map<uint64_t, std::shared_ptr<Peer>> peers_;
  rt::TaskGroup tasks_;
};

}  // namespace skate::rpc
