// The handshake: both ends prove that they know the cluster key before either decodes a byte of a message.
//
//   client -> server  Opening    magic, protocol, release, client nonce
//   server -> client  Challenge  magic, protocol, release, server nonce, status
//   client -> server  Proof      HMAC(key, "skate client" | all of Opening | all of Challenge)
//   server -> client  Proof      HMAC(key, "skate server" | all of Opening | all of Challenge)
// Every step has a fixed size, so that an unknown peer decides about no allocation. The labels keep a proof
// from being reflected; the nonces keep it from being replayed. A wrong release or protocol is told in the
// Challenge, before proofs. The client proves first: a stranger who connects learns nothing about the key.
#pragma once

#include <array>
#include <string>

#include "base/result.h"
#include "rpc/key.h"
#include "rt/stream.h"

namespace skate::rpc {

inline constexpr uint32_t kProtocolVersion = 1;

enum class HandshakeStatus : uint8_t { kOk = 0, kWrongVersion = 1, kBusy = 2 };

struct Greeting {
  static constexpr size_t kBytes = 80;
  uint32_t protocol = kProtocolVersion;
  HandshakeStatus status = HandshakeStatus::kOk;
  std::string release;  ///< at most 32 printable bytes
  Digest nonce{};
};

std::array<uint8_t, Greeting::kBytes> encode_greeting(const Greeting& greeting);
/// kCorrupt for anything that is not a greeting.
Result<Greeting> decode_greeting(std::span<const uint8_t, Greeting::kBytes> bytes);

/// kDenied: wrong key, or no Skate peer. kInvalid: other release. kUnavailable: gone.
rt::Task<Result<void>> handshake_as_client(rt::Stream* stream, ClusterKey key, std::string release);
rt::Task<Result<void>> handshake_as_server(rt::Stream* stream, ClusterKey key, std::string release);
/// Tells a client that there is no room, and is done with it.
rt::Task<void> turn_away(rt::Stream* stream, std::string release);

}  // namespace skate::rpc
