// Admission: from a connection to a stream of which both ends know the cluster key: the handshake, and over
// TCP then TLS, certificates and seals. The order, and why, is told in handshake.h.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "rpc/handshake.h"
#include "rpc/tls.h"

namespace skate::rpc {

/// Between machines: TLS, unless the operator asked for none by name. Unix sockets never have it.
enum class TcpSecurity : uint8_t { kTls, kInsecure };
Follows follows_at(const std::string& address, TcpSecurity tcp);

struct Membership {
  ClusterKey key;
  std::string release;
  Follows follows = Follows::kFrames;
  /// Shared by a daemon's servers and clients; needed with kTls.
  std::shared_ptr<TlsContext> tls{};
};

struct Admitted {
  std::unique_ptr<rt::Stream> stream;       ///< of a member
  std::optional<std::string> joined_token;  ///< no member: it got the key for this token, and is gone
};

rt::Task<Result<std::unique_ptr<rt::Stream>>> enter(std::unique_ptr<rt::Stream> stream, Membership me);
/// With `joins` a token is as good as the key for getting the key. The clock is the loop's.
rt::Task<Result<Admitted>> admit(std::unique_ptr<rt::Stream> stream, Membership me, bool joins);

}  // namespace skate::rpc
