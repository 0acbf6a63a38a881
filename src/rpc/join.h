// Joining: a machine without the cluster key gets it from the head, for a token that an operator carried
// over.
//
// A token is one line of text. It says until when it is good, names the cluster's authority by its
// fingerprint, and holds a secret that the head derives from the cluster key and the rest of the token; so
// the head keeps no list of tokens, and who changes a token makes it worthless. A token may be used any
// number of times until it expires; only the head's clock counts. Who has a good token can have the key:
// treat it like a password. A token that got into wrong hands before it expired is made worthless by a new
// cluster key only.
//
//   joiner -> head   the handshake of handshake.h, with Follows::kJoin, the token's claim (id and expiry) in
//   the head -> joiner   Opening, and the token's secret in place of the cluster key: both prove the secret
//   then TLS         the joiner shows no certificate; the head's must be of the authority in the token
//   both             the seals of handshake.h
//   head -> joiner   2 bytes: size; the cluster key
// The joiner takes the key only if the authority derived from it has the token's fingerprint: then it is the
// key of the cluster that made the token, whoever sent it. Afterwards it connects like any member.
//
// | what happens                              | then                                                        |
// | the text is no token, or a damaged one    | kInvalid before anything is sent                            |
// | the token has expired                     | kInvalid, by the Challenge: make a new one                  |
// | the token is another cluster's            | kDenied: the head's proof or the joiner's is wrong          |
// | the server gives no keys                  | kInvalid, by the Challenge: it is not the head, or insecure |
// | somebody answers with the head's address  | kDenied: it cannot prove the secret                         |
// | somebody sits between                     | kDenied: no certificate of the authority, or a wrong seal   |
// | the connection ends, or takes too long    | kUnavailable or kTimeout: the same token may be used again  |
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "rpc/authority.h"
#include "rpc/handshake.h"
#include "rpc/tls.h"

namespace skate::rpc {

struct JoinToken {
  std::array<uint8_t, 8> id{};
  int64_t expires_unix_s{};
  Fingerprint authority{};
  std::array<uint8_t, 16> secret{};

  TokenClaim claim() const;
  friend bool operator==(const JoinToken&, const JoinToken&) = default;
};

JoinToken make_join_token(const ClusterKey& key, int64_t expires_unix_s);
std::string to_text(const JoinToken& token);
/// kInvalid says what is wrong with the text, without repeating it. White space around it is no fault.
Result<JoinToken> parse_join_token(std::string_view text);

/// What the head says to who claims to have a token.
Verdict judge_claim(const ClusterKey& key, const TokenClaim& claim, int64_t now_unix_s);
/// For logs.
std::string token_name(const TokenClaim& claim);

/// After a handshake for joining.
rt::Task<Result<void>> give_key(std::unique_ptr<rt::Stream> stream, Handshake handshake, ClusterKey key,
                                std::shared_ptr<TlsContext> tls);
/// The cluster's key, for a token; the address is the head's.
rt::Task<Result<ClusterKey>> join_cluster(rt::Network* network, std::string address, JoinToken token,
                                          std::string release, rt::Duration timeout);

}  // namespace skate::rpc
