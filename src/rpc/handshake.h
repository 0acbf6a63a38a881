// The handshake: both ends prove that they know a key before either decodes a byte of anything else.
//
//   client -> server  Opening    magic, protocol, release, what shall follow, claim, client nonce
//   server -> client  Challenge  magic, protocol, release, status, server nonce
//   client -> server  Proof      HMAC(key, "skate client" | all of Opening | all of Challenge)
//   server -> client  Proof      HMAC(key, "skate server" | all of Opening | all of Challenge)
// Every step has a fixed size, so that an unknown peer decides about no allocation. The labels keep a proof
// from being reflected; the nonces keep it from being replayed. What cannot work (another release, TLS on one
// side only, an expired token) is told in the Challenge, before proofs. The client proves first: a stranger
// who connects learns nothing about the key, and one who sends no Opening gets no byte at all.
//
// Over TCP this comes before TLS, so that strangers reach neither OpenSSL's parsers nor its allocations; TLS
// then checks certificates (tls.h). As the proofs above could be passed on by somebody in between, two more
// follow inside TLS and tie the three together:
//
//   client -> server  Seal       HMAC(key, "skate client seal" | hash of Opening and Challenge | TLS binding)
//   server -> client  Seal       HMAC(key, "skate server seal" | hash of Opening and Challenge | TLS binding)
// Who ended TLS here has passed the handshake here, and knows the key itself. The server's Seal also tells
// the client that it was let in.
//
// | what happens                             | then | | the peer says something else, or nothing | it is
// dropped at the first wrong size, or at the time limit    | | a wrong key                              |
// kDenied at both ends; the client is told by the end of stream  | | TLS wanted by one end only | kInvalid,
// with what to do; neither end falls back              | | the stream ends anywhere                 |
// kUnavailable, but kDenied for a client that was waiting for    | | | the answer to its proof |
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <string>

#include "base/result.h"
#include "rpc/key.h"
#include "rt/stream.h"

namespace skate::rpc {

inline constexpr uint32_t kProtocolVersion = 1;

enum class HandshakeStatus : uint8_t {
  kOk = 0,
  kWrongVersion = 1,
  kBusy = 2,
  kOtherSecurity = 3,  ///< what the client wants to follow is not what the server offers
  kNoJoining = 4,
  kTokenExpired = 5,
};

/// What comes after the handshake.
enum class Follows : uint8_t {
  kFrames = 0,  ///< in clear: Unix sockets, and TCP of a cluster that was started with --insecure
  kTls = 1,
  kJoin = 2,  ///< TLS, in which who proved a join token gets the cluster key (join.h)
};

/// Of a join token, without its secret; nothing for members.
using TokenClaim = std::array<uint8_t, 16>;

struct Greeting {
  static constexpr size_t kBytes = 96;
  uint32_t protocol = kProtocolVersion;
  HandshakeStatus status = HandshakeStatus::kOk;
  Follows follows = Follows::kFrames;
  std::string release;  ///< at most 32 printable bytes
  TokenClaim claim{};
  Digest nonce{};
};

std::array<uint8_t, Greeting::kBytes> encode_greeting(const Greeting& greeting);
/// kCorrupt for anything that is not a greeting.
Result<Greeting> decode_greeting(std::span<const uint8_t, Greeting::kBytes> bytes);

/// What both ends know once each has proved the key.
struct Handshake {
  ClusterKey key;
  Follows follows{};
  TokenClaim claim{};
  Digest transcript{};  ///< SHA-256 of Opening and Challenge
};

struct Wish {
  Follows follows = Follows::kFrames;
  TokenClaim claim{};
};

/// What a server says to an opening of its own release: a key to prove, or why not.
struct Verdict {
  HandshakeStatus status = HandshakeStatus::kOk;
  std::optional<ClusterKey> key{};
};
using Judge = std::function<Verdict(const Greeting& opening)>;
/// Of a server that has one key and one kind of clients.
Judge expect(ClusterKey key, Follows follows);

/// kDenied: wrong key, or no Skate peer. kInvalid: other release, other security, expired token.
/// kUnavailable: gone.
rt::Task<Result<Handshake>> handshake_as_client(rt::Stream* stream, ClusterKey key, std::string release,
                                                Wish wish);
rt::Task<Result<Handshake>> handshake_as_server(rt::Stream* stream, std::string release, Judge judge);
/// Over the TLS stream whose binding() is given.
rt::Task<Result<void>> seal_as_client(rt::Stream* stream, Handshake handshake, Digest binding);
rt::Task<Result<void>> seal_as_server(rt::Stream* stream, Handshake handshake, Digest binding);
/// Tells a client that there is no room, and is done with it.
rt::Task<void> turn_away(rt::Stream* stream, std::string release);

}  // namespace skate::rpc
