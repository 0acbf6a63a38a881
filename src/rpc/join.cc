#include "rpc/join.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cstring>

#include "base/ids.h"
#include "rt/sleep.h"

namespace skate::rpc {
namespace {

constexpr std::string_view kPrefix = "skt1_";
constexpr std::string_view kSecretLabel = "skate join token";
constexpr size_t kChecksumBytes = 4;
constexpr size_t kBodyBytes = sizeof(TokenClaim) + sizeof(Fingerprint) + sizeof(JoinToken::secret);
constexpr size_t kTextBytes = kPrefix.size() + 2 * (kBodyBytes + kChecksumBytes);
constexpr int64_t kLastSecond = 253'402'300'799;  // of the year 9999

using Secret = decltype(JoinToken::secret);

std::array<uint8_t, kChecksumBytes> checksum(std::span<const uint8_t> body) {
  Digest digest;
  const int done = EVP_Digest(body.data(), body.size(), digest.data(), nullptr, EVP_sha256(), nullptr);
  SKATE_ASSERT(done == 1, "SHA-256 is always there");
  std::array<uint8_t, kChecksumBytes> sum;
  std::copy_n(digest.begin(), sum.size(), sum.begin());
  return sum;
}

Secret secret_of(const ClusterKey& key, const TokenClaim& claim) {
  const std::span label(reinterpret_cast<const uint8_t*>(kSecretLabel.data()), kSecretLabel.size());
  const Digest digest = key.sign({label, claim});
  Secret secret;
  std::copy_n(digest.begin(), secret.size(), secret.begin());
  return secret;
}

/// A token's secret in the place of a cluster key. As text, of which no byte is taken for a line's end.
ClusterKey key_of(const Secret& secret) {
  return *ClusterKey::from_bytes(to_hex(secret.data(), secret.size()));
}

int64_t expiry_of(const TokenClaim& claim) {
  int64_t seconds = 0;
  std::memcpy(&seconds, claim.data() + sizeof(JoinToken::id), sizeof(seconds));
  return seconds;
}

Error no_token(const std::string& why) {
  return Error{ErrorCode::kInvalid, "not a join token: " + why +
                                        "; copy the whole line that the head printed, or make a new token"};
}

/// The same error for who started a node: what was tried, and what to do.
Error explained(const Error& error, const std::string& address) {
  switch (error.code) {
    case ErrorCode::kTimeout:
      return Error{error.code, "the head at " + address +
                                   " did not answer in time: check the address, and that the head runs"};
    case ErrorCode::kUnavailable:
      return Error{error.code, "cannot join the cluster at " + address + ": " + error.message +
                                   "; check the address, and that the head runs"};
    default: return Error{error.code, "cannot join the cluster at " + address + ": " + error.message};
  }
}

rt::Task<Result<ClusterKey>> receive_key(rt::Stream* stream, Fingerprint authority) {
  std::array<uint8_t, 2> head;
  Result<void> received = co_await rt::read_exactly(stream, head);
  if (!received) co_return received.error();
  const size_t size = head[0] | size_t{head[1]} << 8;
  if (size > ClusterKey::kBytesMax) co_return Error{ErrorCode::kCorrupt, "the head sent no key"};
  std::string bytes(size, '\0');
  const std::span into(reinterpret_cast<uint8_t*>(bytes.data()), bytes.size());
  received = co_await rt::read_exactly(stream, into);
  if (!received) co_return received.error();
  Result<ClusterKey> key = ClusterKey::from_bytes(std::move(bytes));
  if (!key) co_return Error{ErrorCode::kCorrupt, "the head sent no key: " + key.error().message};
  if (Authority(*key).fingerprint() != authority)
    co_return Error{ErrorCode::kDenied, "the head sent the key of another cluster than the token is for"};
  co_return std::move(*key);
}

rt::Task<Result<ClusterKey>> join(rt::Network* network, std::string address, JoinToken token,
                                  std::string release) {
  Result<std::unique_ptr<rt::Stream>> stream = co_await network->connect(address);
  if (!stream) co_return stream.error();
  Wish wish{Follows::kJoin, token.claim()};
  ClusterKey proof = key_of(token.secret);
  Result<Handshake> known = co_await handshake_as_client(stream->get(), proof, release, wish);
  if (!known) co_return known.error();
  std::shared_ptr<TlsContext> guest = TlsContext::of_guest(token.authority);
  TlsStream::Connected tls = co_await TlsStream::connect(std::move(*stream), guest);
  if (!tls) co_return tls.error();
  Digest binding = (*tls)->binding();
  Result<void> sealed = co_await seal_as_client(tls->get(), *known, binding);
  if (!sealed) co_return sealed.error();
  co_return co_await receive_key(tls->get(), token.authority);
}

}  // namespace

TokenClaim JoinToken::claim() const {
  TokenClaim claim;
  static_assert(sizeof(claim) == sizeof(id) + sizeof(expires_unix_s));
  std::memcpy(claim.data(), id.data(), id.size());
  std::memcpy(claim.data() + id.size(), &expires_unix_s, sizeof(expires_unix_s));
  return claim;
}

JoinToken make_join_token(const ClusterKey& key, int64_t expires_unix_s) {
  JoinToken token;
  secure_random_bytes(token.id.data(), token.id.size());
  token.expires_unix_s = std::clamp<int64_t>(expires_unix_s, 0, kLastSecond);
  token.authority = Authority(key).fingerprint();
  token.secret = secret_of(key, token.claim());
  return token;
}

std::string to_text(const JoinToken& token) {
  std::array<uint8_t, kBodyBytes + kChecksumBytes> bytes;
  const TokenClaim claim = token.claim();
  uint8_t* out = std::copy(claim.begin(), claim.end(), bytes.data());
  out = std::copy(token.authority.begin(), token.authority.end(), out);
  out = std::copy(token.secret.begin(), token.secret.end(), out);
  const auto sum = checksum(std::span(bytes).first(kBodyBytes));
  std::copy(sum.begin(), sum.end(), out);
  return std::string(kPrefix) + to_hex(bytes.data(), bytes.size());
}

Result<JoinToken> parse_join_token(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return no_token("it is empty");
  text = text.substr(first, text.find_last_not_of(kSpace) - first + 1);
  if (!text.starts_with(kPrefix)) return no_token("it does not begin with " + std::string(kPrefix));
  if (text.size() != kTextBytes)
    return no_token("it has " + std::to_string(text.size()) + " characters, not " +
                    std::to_string(kTextBytes));
  std::array<uint8_t, kBodyBytes + kChecksumBytes> bytes;
  if (!from_hex(text.substr(kPrefix.size()), bytes.data(), bytes.size()))
    return no_token("after " + std::string(kPrefix) + " it has other characters than 0-9 and a-f");
  const auto sum = checksum(std::span(bytes).first(kBodyBytes));
  if (!std::equal(sum.begin(), sum.end(), bytes.begin() + kBodyBytes))
    return no_token("a character was changed on the way");
  JoinToken token;
  TokenClaim claim;
  const uint8_t* in = bytes.data();
  std::copy_n(in, claim.size(), claim.begin());
  std::copy_n(in, token.id.size(), token.id.begin());
  token.expires_unix_s = expiry_of(claim);
  if (token.expires_unix_s < 0 || token.expires_unix_s > kLastSecond) return no_token("its date is none");
  std::copy_n(in + claim.size(), token.authority.size(), token.authority.begin());
  std::copy_n(in + claim.size() + token.authority.size(), token.secret.size(), token.secret.begin());
  return token;
}

Verdict judge_claim(const ClusterKey& key, const TokenClaim& claim, int64_t now_unix_s) {
  if (expiry_of(claim) <= now_unix_s) return Verdict{.status = HandshakeStatus::kTokenExpired};
  return Verdict{.key = key_of(secret_of(key, claim))};
}

std::string token_name(const TokenClaim& claim) { return to_hex(claim.data(), sizeof(JoinToken::id)); }

rt::Task<Result<void>> give_key(std::unique_ptr<rt::Stream> stream, Handshake handshake, ClusterKey key,
                                std::shared_ptr<TlsContext> tls) {
  TlsStream::Connected guest = co_await TlsStream::accept(std::move(stream), tls, TlsPeer::kGuest);
  if (!guest) co_return guest.error();
  Digest binding = (*guest)->binding();
  Result<void> sealed = co_await seal_as_server(guest->get(), handshake, binding);
  if (!sealed) co_return sealed.error();
  const size_t size = key.secret().size();
  std::string message{static_cast<char>(size & 0xFF), static_cast<char>(size >> 8)};
  message += key.secret();
  const std::span bytes(reinterpret_cast<const uint8_t*>(message.data()), message.size());
  Result<void> sent = co_await (*guest)->write(bytes);
  OPENSSL_cleanse(message.data(), message.size());
  co_return sent;
}

rt::Task<Result<ClusterKey>> join_cluster(rt::Network* network, std::string address, JoinToken token,
                                          std::string release, rt::Duration timeout) {
  rt::Task<Result<ClusterKey>> joining = join(network, address, token, std::move(release));
  Result<ClusterKey> key = co_await rt::with_timeout(timeout, std::move(joining));
  if (!key) co_return explained(key.error(), address);
  co_return std::move(*key);
}

}  // namespace skate::rpc
