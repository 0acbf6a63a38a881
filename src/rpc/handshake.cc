#include "rpc/handshake.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstring>

#include "base/ids.h"

namespace skate::rpc {
namespace {

constexpr uint8_t kMagic[8] = {'S', 'K', 'A', 'T', 'E', 'r', 'p', 'c'};
constexpr size_t kReleaseBytes = 32;
using GreetingBytes = std::array<uint8_t, Greeting::kBytes>;

std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

Digest proof(const ClusterKey& key, std::string_view label, const GreetingBytes& opening,
             const GreetingBytes& challenge) {
  return key.sign({bytes_of(label), opening, challenge});
}

Digest seal(const Handshake& handshake, std::string_view label, const Digest& binding) {
  return handshake.key.sign({bytes_of(label), handshake.transcript, binding});
}

Digest hash(const GreetingBytes& opening, const GreetingBytes& challenge) {
  std::array<uint8_t, 2 * Greeting::kBytes> both;
  std::copy(challenge.begin(), challenge.end(), std::copy(opening.begin(), opening.end(), both.begin()));
  Digest digest;
  const int done = EVP_Digest(both.data(), both.size(), digest.data(), nullptr, EVP_sha256(), nullptr);
  SKATE_ASSERT(done == 1, "SHA-256 is always there");
  return digest;
}

Greeting make_greeting(std::string release, Wish wish) {
  Greeting greeting;
  greeting.follows = wish.follows;
  greeting.claim = wish.claim;
  greeting.release = std::move(release);
  secure_random_bytes(greeting.nonce.data(), greeting.nonce.size());
  return greeting;
}

Error not_skate(const rt::Stream* stream) {
  return Error{ErrorCode::kDenied, "the peer (" + stream->peer() + ") does not speak Skate's protocol"};
}

/// Why the server said no, for who must do something about it.
Error refused(const Greeting& server, const std::string& release, Follows wanted) {
  switch (server.status) {
    case HandshakeStatus::kBusy:
      return Error{ErrorCode::kUnavailable, "the server has no room for a connection"};
    case HandshakeStatus::kOtherSecurity:
      return Error{
          ErrorCode::kInvalid,
          wanted == Follows::kFrames
              ? "the cluster uses TLS, but this process was started with --insecure: start it without"
              : "the cluster was started with --insecure and uses no TLS, but this process wants it: "
                "start both in the same way"};
    case HandshakeStatus::kNoJoining:
      return Error{ErrorCode::kInvalid,
                   "no join token is taken at this address: give the address of the head, as the token was "
                   "printed with, or copy the cluster's key file to this machine"};
    case HandshakeStatus::kTokenExpired:
      return Error{ErrorCode::kInvalid,
                   "by the head's clock the join token has expired: make a new one on the head"};
    case HandshakeStatus::kOk:
    case HandshakeStatus::kWrongVersion: break;
  }
  return Error{ErrorCode::kInvalid, "the cluster runs Skate " + server.release + ", this process Skate " +
                                        release + ": install the same version on both"};
}

/// The same for the server's log.
std::string why_not(HandshakeStatus status, const std::string& peer) {
  switch (status) {
    case HandshakeStatus::kOtherSecurity: return "the peer (" + peer + ") does not agree about TLS";
    case HandshakeStatus::kNoJoining:
      return "the peer (" + peer + ") has a join token, but here is no joining";
    case HandshakeStatus::kTokenExpired: return "the join token of the peer (" + peer + ") has expired";
    case HandshakeStatus::kOk:
    case HandshakeStatus::kWrongVersion:
    case HandshakeStatus::kBusy: break;
  }
  return "the peer (" + peer + ") is not wanted";
}

}  // namespace

GreetingBytes encode_greeting(const Greeting& greeting) {
  SKATE_ASSERT(greeting.release.size() <= kReleaseBytes, "a release has at most 32 bytes");
  GreetingBytes bytes{};
  uint8_t* out = std::copy_n(kMagic, sizeof(kMagic), bytes.data());
  std::memcpy(out, &greeting.protocol, sizeof(greeting.protocol));
  out[4] = static_cast<uint8_t>(greeting.status);
  out[5] = static_cast<uint8_t>(greeting.follows);  // two bytes of zeros follow
  std::memcpy(out + 8, greeting.release.data(), greeting.release.size());
  out = std::copy(greeting.claim.begin(), greeting.claim.end(), out + 8 + kReleaseBytes);
  std::copy(greeting.nonce.begin(), greeting.nonce.end(), out);
  return bytes;
}

Result<Greeting> decode_greeting(std::span<const uint8_t, Greeting::kBytes> bytes) {
  const Error corrupt{ErrorCode::kCorrupt, "not a greeting"};
  if (!std::equal(std::begin(kMagic), std::end(kMagic), bytes.begin())) return corrupt;
  const uint8_t* in = bytes.data() + sizeof(kMagic);
  Greeting greeting;
  std::memcpy(&greeting.protocol, in, sizeof(greeting.protocol));
  if (in[4] > static_cast<uint8_t>(HandshakeStatus::kTokenExpired)) return corrupt;
  if (in[5] > static_cast<uint8_t>(Follows::kJoin) || in[6] != 0 || in[7] != 0) return corrupt;
  greeting.status = static_cast<HandshakeStatus>(in[4]);
  greeting.follows = static_cast<Follows>(in[5]);
  const char* release = reinterpret_cast<const char*>(in + 8);
  greeting.release.assign(release, strnlen(release, kReleaseBytes));
  const bool printable =
      std::all_of(greeting.release.begin(), greeting.release.end(), [](char c) { return c > 32 && c < 127; });
  if (!printable) return corrupt;
  in += 8 + kReleaseBytes;
  std::copy_n(in, greeting.claim.size(), greeting.claim.begin());
  std::copy_n(in + greeting.claim.size(), greeting.nonce.size(), greeting.nonce.begin());
  return greeting;
}

Judge expect(ClusterKey key, Follows follows) {
  return [key = std::move(key), follows](const Greeting& opening) {
    if (opening.follows == Follows::kJoin) return Verdict{.status = HandshakeStatus::kNoJoining};
    if (opening.follows != follows) return Verdict{.status = HandshakeStatus::kOtherSecurity};
    return Verdict{.key = key};
  };
}

rt::Task<Result<Handshake>> handshake_as_client(rt::Stream* stream, ClusterKey key, std::string release,
                                                Wish wish) {
  const GreetingBytes opening = encode_greeting(make_greeting(release, wish));
  Result<void> sent = co_await stream->write(opening);
  if (!sent) co_return sent.error();

  GreetingBytes challenge;
  Result<void> received = co_await rt::read_exactly(stream, challenge);
  if (!received) co_return received.error();
  Result<Greeting> server = decode_greeting(challenge);
  if (!server) co_return not_skate(stream);
  const bool same = server->protocol == kProtocolVersion && server->release == release;
  if (!same || server->status != HandshakeStatus::kOk) co_return refused(*server, release, wish.follows);

  const Digest mine = proof(key, "skate client", opening, challenge);
  sent = co_await stream->write(mine);
  if (!sent) co_return sent.error();
  Digest theirs;
  received = co_await rt::read_exactly(stream, theirs);
  if (!received)
    co_return Error{
        ErrorCode::kDenied,
        wish.follows == Follows::kJoin
            ? "the head refused the join token: it is another cluster's, or the head's key has been "
              "changed since; make a new token on the head"
            : "the server refused this process's cluster key"};
  if (!equal_in_constant_time(theirs, proof(key, "skate server", opening, challenge)))
    co_return Error{ErrorCode::kDenied, wish.follows == Follows::kJoin
                                            ? "who answers at this address did not make the join token"
                                            : "the server does not know the cluster key"};
  co_return Handshake{std::move(key), wish.follows, wish.claim, hash(opening, challenge)};
}

rt::Task<Result<Handshake>> handshake_as_server(rt::Stream* stream, std::string release, Judge judge) {
  GreetingBytes opening;
  Result<void> received = co_await rt::read_exactly(stream, opening);
  if (!received) co_return received.error();
  Result<Greeting> client = decode_greeting(opening);
  if (!client) co_return not_skate(stream);

  const bool same = client->protocol == kProtocolVersion && client->release == release;
  Verdict verdict = same ? judge(*client) : Verdict{.status = HandshakeStatus::kWrongVersion};
  SKATE_ASSERT(verdict.key.has_value() == (verdict.status == HandshakeStatus::kOk),
               "who is let on must prove a key");
  Greeting answer = make_greeting(release, Wish{});
  answer.status = verdict.status;
  const GreetingBytes challenge = encode_greeting(answer);
  Result<void> sent = co_await stream->write(challenge);
  if (!sent) co_return sent.error();
  if (!same)
    co_return Error{ErrorCode::kInvalid, "the peer (" + stream->peer() + ") runs Skate " + client->release};
  if (!verdict.key) co_return Error{ErrorCode::kInvalid, why_not(verdict.status, stream->peer())};

  Digest theirs;
  received = co_await rt::read_exactly(stream, theirs);
  if (!received) co_return received.error();
  if (!equal_in_constant_time(theirs, proof(*verdict.key, "skate client", opening, challenge)))
    co_return Error{ErrorCode::kDenied, "the peer (" + stream->peer() + ") does not know the " +
                                            (client->follows == Follows::kJoin ? "token" : "cluster key")};
  const Digest mine = proof(*verdict.key, "skate server", opening, challenge);
  sent = co_await stream->write(mine);
  if (!sent) co_return sent.error();
  co_return Handshake{std::move(*verdict.key), client->follows, client->claim, hash(opening, challenge)};
}

rt::Task<Result<void>> seal_as_client(rt::Stream* stream, Handshake handshake, Digest binding) {
  const Digest mine = seal(handshake, "skate client seal", binding);
  Result<void> sent = co_await stream->write(mine);
  if (!sent) co_return sent.error();
  Digest theirs;
  Result<void> received = co_await rt::read_exactly(stream, theirs);
  if (!received) co_return received.error();
  if (!equal_in_constant_time(theirs, seal(handshake, "skate server seal", binding)))
    co_return Error{ErrorCode::kDenied, "somebody stands between this process and " + stream->peer()};
  co_return Result<void>();
}

rt::Task<Result<void>> seal_as_server(rt::Stream* stream, Handshake handshake, Digest binding) {
  Digest theirs;
  Result<void> received = co_await rt::read_exactly(stream, theirs);
  if (!received) co_return received.error();
  if (!equal_in_constant_time(theirs, seal(handshake, "skate client seal", binding)))
    co_return Error{ErrorCode::kDenied, "somebody stands between this process and " + stream->peer()};
  const Digest mine = seal(handshake, "skate server seal", binding);
  co_return co_await stream->write(mine);
}

rt::Task<void> turn_away(rt::Stream* stream, std::string release) {
  Greeting answer = make_greeting(std::move(release), Wish{});
  answer.status = HandshakeStatus::kBusy;
  const GreetingBytes bytes = encode_greeting(answer);
  Result<void> told = co_await stream->write(bytes);
  if (!told) co_return;  // gone already, which is as good
}

}  // namespace skate::rpc
