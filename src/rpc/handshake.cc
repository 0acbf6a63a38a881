#include "rpc/handshake.h"

#include <algorithm>
#include <cstring>

#include "base/ids.h"

namespace skate::rpc {
namespace {

constexpr uint8_t kMagic[8] = {'S', 'K', 'A', 'T', 'E', 'r', 'p', 'c'};
constexpr size_t kReleaseBytes = 32;
using GreetingBytes = std::array<uint8_t, Greeting::kBytes>;

Digest proof(const ClusterKey& key, std::string_view label, const GreetingBytes& opening,
             const GreetingBytes& challenge) {
  const std::span label_bytes(reinterpret_cast<const uint8_t*>(label.data()), label.size());
  return key.sign({label_bytes, opening, challenge});
}

Greeting make_greeting(std::string release) {
  Greeting greeting;
  greeting.release = std::move(release);
  secure_random_bytes(greeting.nonce.data(), greeting.nonce.size());
  return greeting;
}

Error not_skate(const rt::Stream* stream) {
  return Error{ErrorCode::kDenied, "the peer (" + stream->peer() + ") does not speak Skate's protocol"};
}

}  // namespace

GreetingBytes encode_greeting(const Greeting& greeting) {
  SKATE_ASSERT(greeting.release.size() <= kReleaseBytes, "a release has at most 32 bytes");
  GreetingBytes bytes{};
  uint8_t* out = std::copy_n(kMagic, sizeof(kMagic), bytes.data());
  std::memcpy(out, &greeting.protocol, sizeof(greeting.protocol));
  out[4] = static_cast<uint8_t>(greeting.status);  // three bytes of zeros follow
  std::memcpy(out + 8, greeting.release.data(), greeting.release.size());
  std::copy(greeting.nonce.begin(), greeting.nonce.end(), out + 8 + kReleaseBytes);
  return bytes;
}

Result<Greeting> decode_greeting(std::span<const uint8_t, Greeting::kBytes> bytes) {
  const Error corrupt{ErrorCode::kCorrupt, "not a greeting"};
  if (!std::equal(std::begin(kMagic), std::end(kMagic), bytes.begin())) return corrupt;
  const uint8_t* in = bytes.data() + sizeof(kMagic);
  Greeting greeting;
  std::memcpy(&greeting.protocol, in, sizeof(greeting.protocol));
  if (in[4] > static_cast<uint8_t>(HandshakeStatus::kBusy)) return corrupt;
  greeting.status = static_cast<HandshakeStatus>(in[4]);
  const char* release = reinterpret_cast<const char*>(in + 8);
  greeting.release.assign(release, strnlen(release, kReleaseBytes));
  const bool printable =
      std::all_of(greeting.release.begin(), greeting.release.end(), [](char c) { return c > 32 && c < 127; });
  if (!printable) return corrupt;
  std::copy_n(in + 8 + kReleaseBytes, greeting.nonce.size(), greeting.nonce.begin());
  return greeting;
}

rt::Task<Result<void>> handshake_as_client(rt::Stream* stream, ClusterKey key, std::string release) {
  const GreetingBytes opening = encode_greeting(make_greeting(release));
  Result<void> sent = co_await stream->write(opening);
  if (!sent) co_return sent.error();

  GreetingBytes challenge;
  Result<void> received = co_await rt::read_exactly(stream, challenge);
  if (!received) co_return received.error();
  Result<Greeting> server = decode_greeting(challenge);
  if (!server) co_return not_skate(stream);
  if (server->status == HandshakeStatus::kBusy)
    co_return Error{ErrorCode::kUnavailable, "the server has no room for a connection"};
  if (server->status == HandshakeStatus::kWrongVersion || server->protocol != kProtocolVersion ||
      server->release != release)
    co_return Error{ErrorCode::kInvalid, "the cluster runs Skate " + server->release +
                                             ", this process Skate " + release +
                                             ": install the same version on both"};

  const Digest mine = proof(key, "skate client", opening, challenge);
  sent = co_await stream->write(mine);
  if (!sent) co_return sent.error();
  Digest theirs;
  received = co_await rt::read_exactly(stream, theirs);
  if (!received) co_return Error{ErrorCode::kDenied, "the server refused this process's cluster key"};
  if (!equal_in_constant_time(theirs, proof(key, "skate server", opening, challenge)))
    co_return Error{ErrorCode::kDenied, "the server does not know the cluster key"};
  co_return Result<void>();
}

rt::Task<Result<void>> handshake_as_server(rt::Stream* stream, ClusterKey key, std::string release) {
  GreetingBytes opening;
  Result<void> received = co_await rt::read_exactly(stream, opening);
  if (!received) co_return received.error();
  Result<Greeting> client = decode_greeting(opening);
  if (!client) co_return not_skate(stream);

  Greeting answer = make_greeting(release);
  const bool same = client->protocol == kProtocolVersion && client->release == release;
  if (!same) answer.status = HandshakeStatus::kWrongVersion;
  const GreetingBytes challenge = encode_greeting(answer);
  Result<void> sent = co_await stream->write(challenge);
  if (!sent) co_return sent.error();
  if (!same)
    co_return Error{ErrorCode::kInvalid, "the peer (" + stream->peer() + ") runs Skate " + client->release};

  Digest theirs;
  received = co_await rt::read_exactly(stream, theirs);
  if (!received) co_return received.error();
  if (!equal_in_constant_time(theirs, proof(key, "skate client", opening, challenge)))
    co_return Error{ErrorCode::kDenied, "the peer (" + stream->peer() + ") does not know the cluster key"};
  const Digest mine = proof(key, "skate server", opening, challenge);
  co_return co_await stream->write(mine);
}

rt::Task<void> turn_away(rt::Stream* stream, std::string release) {
  Greeting answer = make_greeting(std::move(release));
  answer.status = HandshakeStatus::kBusy;
  const GreetingBytes bytes = encode_greeting(answer);
  Result<void> told = co_await stream->write(bytes);
  if (!told) co_return;  // gone already, which is as good
}

}  // namespace skate::rpc
