// TLS, admission and what may go wrong with them: over the simulated network, and over real loopback sockets.
#include "rpc/tls.h"

#include <gtest/gtest.h>
#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <functional>
#include <optional>
#include <set>
#include <vector>

#include "rpc/admission.h"
#include "rpc/tls_testing.h"
#include "rt/sim_network.h"
#include "rt/sleep.h"
#include "rt/task_group.h"

namespace skate::rpc {
namespace {

using namespace std::chrono_literals;
using StreamPtr = std::unique_ptr<rt::Stream>;
using TlsPtr = std::unique_ptr<TlsStream>;

ClusterKey key_of(const char* text = "the key of the tests") { return *ClusterKey::from_bytes(text); }

/// Greeting and proof, before the first byte of TLS, in each direction.
constexpr size_t kGateBytes = Greeting::kBytes + sizeof(Digest);

rt::Task<void> dial(rt::Network* network, std::string address, StreamPtr* out) {
  Result<StreamPtr> stream = co_await network->connect(std::move(address));
  EXPECT_TRUE(stream.ok());
  if (stream) *out = std::move(*stream);
}
rt::Task<void> pick_up(rt::Listener* listener, StreamPtr* out) {
  Result<StreamPtr> stream = co_await listener->accept();
  EXPECT_TRUE(stream.ok());
  if (stream) *out = std::move(*stream);
}

template <class T>
rt::Task<void> keep(rt::Task<T> task, std::optional<T>* out) {
  T value = co_await std::move(task);
  out->emplace(std::move(value));
}

/// Two ends of a connection in a simulated world.
struct Line {
  explicit Line(uint64_t seed) : loop(seed), network(loop, {}), tasks(loop) {
    std::unique_ptr<rt::Listener> listener = std::move(*network.listen("tcp:somewhere:1"));
    rt::TaskGroup connecting(loop);
    connecting.spawn(dial(&network, "tcp:somewhere:1", &client));
    connecting.spawn(pick_up(listener.get(), &server));
    loop.run();
  }
  rt::SimLoop loop;
  rt::SimNetwork network;
  StreamPtr client, server;
  rt::TaskGroup tasks;
};

/// Two ends that are to meet in TLS.
struct TlsLine : Line {
  TlsLine(uint64_t seed, std::shared_ptr<TlsContext> client_context,
          std::shared_ptr<TlsContext> server_context, Faults at_client = {}, Faults at_server = {},
          TlsPeer peer = TlsPeer::kMember)
      : Line(seed), group(loop) {
    group.spawn(keep(TlsStream::connect(std::make_unique<FaultyStream>(std::move(client), at_client),
                                        std::move(client_context)),
                     &connected));
    group.spawn(keep(TlsStream::accept(std::make_unique<FaultyStream>(std::move(server), at_server),
                                       std::move(server_context), peer),
                     &accepted));
    loop.run_for(10s);
  }
  TlsStream* near() { return connected->value().get(); }
  TlsStream* far() { return accepted->value().get(); }
  bool met() const { return connected && connected->ok() && accepted && accepted->ok(); }

  std::optional<TlsStream::Connected> connected, accepted;
  rt::TaskGroup group;
};

std::vector<uint8_t> noise(uint64_t seed, size_t size) {
  std::vector<uint8_t> bytes(size);
  rt::Random random(seed);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

/// In pieces of all sizes, on both sides.
rt::Task<void> pour(rt::Stream* stream, std::span<const uint8_t> bytes, uint64_t seed) {
  rt::Random random(seed);
  while (!bytes.empty()) {
    const size_t size = std::min<size_t>(bytes.size(), 1 + random.below(uint64_t{1} << random.below(21)));
    Result<void> sent = co_await stream->write(bytes.first(size));
    EXPECT_TRUE(sent.ok());
    if (!sent) co_return;
    bytes = bytes.subspan(size);
  }
}
rt::Task<void> compare(rt::Stream* stream, std::span<const uint8_t> bytes, uint64_t seed, bool* same) {
  rt::Random random(seed);
  std::vector<uint8_t> buffer(1 << 20);
  while (!bytes.empty()) {
    const std::span into = std::span(buffer).first(1 + random.below(uint64_t{1} << random.below(21)));
    Result<size_t> got = co_await stream->read(into);
    EXPECT_TRUE(got.ok());
    if (!got || *got == 0 || *got > bytes.size()) co_return;
    if (!std::equal(into.begin(), into.begin() + static_cast<ptrdiff_t>(*got), bytes.begin())) co_return;
    bytes = bytes.subspan(*got);
  }
  *same = true;
}

rt::Task<void> read_some(rt::Stream* stream, std::vector<uint8_t>* buffer,
                         std::optional<Result<size_t>>* out) {
  Result<size_t> got = co_await stream->read(*buffer);
  out->emplace(std::move(got));
}
rt::Task<void> write_all(rt::Stream* stream, std::vector<uint8_t> bytes, std::optional<Result<void>>* out) {
  Result<void> sent = co_await stream->write(bytes);
  out->emplace(std::move(sent));
}

TEST(Authority, IsTheSameForOneKeyAndNoOther) {
  const Authority one(key_of()), again(key_of()), other(key_of("the key of another cluster"));
  EXPECT_EQ(one.fingerprint(), again.fingerprint());
  EXPECT_EQ(X509_cmp(one.certificate(), again.certificate()), 0);
  EXPECT_NE(one.fingerprint(), other.fingerprint());
  EXPECT_EQ(fingerprint_of(one.certificate()), one.fingerprint());
  const Identity node = one.issue();
  EXPECT_NE(fingerprint_of(node.certificate.get()), fingerprint_of(one.issue().certificate.get()));
  EXPECT_EQ(X509_verify(node.certificate.get(), X509_get0_pubkey(one.certificate())), 1);
  EXPECT_NE(X509_verify(node.certificate.get(), X509_get0_pubkey(other.certificate())), 1);
  EXPECT_EQ(X509_check_ca(node.certificate.get()), 0) << "a node signs for nobody";
}

TEST(Tls, BothEndsMeetAndShareABinding) {
  const auto context = TlsContext::of_member(key_of());
  TlsLine line(1, context, TlsContext::of_member(key_of())), second(2, context, context);
  ASSERT_TRUE(line.met());
  ASSERT_TRUE(second.met());
  EXPECT_EQ(line.near()->binding(), line.far()->binding());
  EXPECT_NE(line.near()->binding(), second.near()->binding());
}

TEST(Tls, CarriesBytesBothWaysAtOnce) {
  const auto context = TlsContext::of_member(key_of());
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    Faults pieces;
    pieces.read_max = 1 + 37 * seed * seed * seed;
    TlsLine line(seed, context, context, pieces, pieces);
    ASSERT_TRUE(line.met());
    const auto up = noise(seed, 3 << 20), down = noise(seed + 100, 2 << 20);
    bool up_same = false, down_same = false;
    line.group.spawn(pour(line.near(), up, seed));
    line.group.spawn(pour(line.far(), down, seed + 1));
    line.group.spawn(compare(line.far(), up, seed + 2, &up_same));
    line.group.spawn(compare(line.near(), down, seed + 3, &down_same));
    line.loop.run();
    EXPECT_TRUE(up_same && down_same) << "seed " << seed;
  }
}

TEST(Tls, ChangesKeysOnTheWay) {
  const auto context = TlsContext::of_member(key_of(), {.bytes_per_key = 100'000});
  TlsLine line(3, context, context);
  ASSERT_TRUE(line.met());
  const auto up = noise(1, 3 << 20), down = noise(2, 3 << 20);
  bool up_same = false, down_same = false;
  line.group.spawn(pour(line.near(), up, 1));
  line.group.spawn(pour(line.far(), down, 2));
  line.group.spawn(compare(line.far(), up, 3, &up_same));
  line.group.spawn(compare(line.near(), down, 4, &down_same));
  line.loop.run();
  EXPECT_TRUE(up_same && down_same);
}

/// A member that goes on asking for new keys and reads no answer.
rt::Task<void> ask_for_keys(StreamPtr below, std::shared_ptr<TlsContext> context, int requests) {
  const std::unique_ptr<SSL, decltype(&SSL_free)> ssl(SSL_new(context->native()), SSL_free);
  BIO* in = BIO_new(BIO_s_mem());
  BIO* out = BIO_new(BIO_s_mem());
  SSL_set_bio(ssl.get(), in, out);
  SSL_set_connect_state(ssl.get());
  std::vector<uint8_t> buffer(16384);
  int left = requests;
  for (bool met = false; !met || left > 0;) {
    if (!met) {
      met = SSL_do_handshake(ssl.get()) == 1;
    } else {
      --left;
      EXPECT_EQ(SSL_key_update(ssl.get(), SSL_KEY_UPDATE_REQUESTED), 1);
      EXPECT_EQ(SSL_write(ssl.get(), "x", 1), 1);
    }
    const int size = BIO_read(out, buffer.data(), static_cast<int>(buffer.size()));
    const std::span bytes = std::span(buffer).first(size > 0 ? static_cast<size_t>(size) : 0);
    Result<void> sent = co_await below->write(bytes);
    if (!sent) co_return;
    if (met) continue;
    Result<size_t> got = co_await below->read(buffer);
    EXPECT_TRUE(got.ok());
    if (!got) co_return;
    BIO_write(in, buffer.data(), static_cast<int>(*got));
  }
  co_await rt::sleep_for(10s);  // stays, so that its end is not what ends the other one
}
rt::Task<void> read_requests(StreamPtr below, std::shared_ptr<TlsContext> context, int requests, int* taken,
                             std::optional<Error>* failure) {
  TlsStream::Connected tls = co_await TlsStream::accept(std::move(below), context);
  EXPECT_TRUE(tls.ok());
  std::vector<uint8_t> buffer(100);
  while (tls.ok() && *taken < requests) {
    Result<size_t> got = co_await (*tls)->read(buffer);
    if (!got) {
      *failure = got.error();
      co_return;
    }
    *taken += static_cast<int>(*got);
  }
}

TEST(Tls, APeerThatGoesOnAskingForKeysIsDropped) {
  const auto context = TlsContext::of_member(key_of());
  for (const int requests : {100, 8000}) {
    Line line(17);
    int taken = 0;
    std::optional<Error> failure;
    line.tasks.spawn(ask_for_keys(std::move(line.client), context, requests));
    line.tasks.spawn(read_requests(std::move(line.server), context, requests, &taken, &failure));
    line.loop.run();
    EXPECT_EQ(failure.has_value(), requests == 8000);
    EXPECT_EQ(taken == requests, requests == 100) << taken;
    if (failure) {
      EXPECT_EQ(failure->code, ErrorCode::kCorrupt) << failure->message;
    }
  }
}

TEST(Tls, AnotherAuthorityIsRefusedBothWays) {
  const auto ours = TlsContext::of_member(key_of());
  const auto theirs = TlsContext::of_member(key_of("the key of another cluster"));
  TlsLine line(4, ours, theirs);
  ASSERT_TRUE(line.connected && line.accepted);
  EXPECT_EQ(line.connected->error().code, ErrorCode::kDenied);
  EXPECT_NE(line.connected->error().message.find("not of this cluster"), std::string::npos)
      << line.connected->error().message;
  EXPECT_EQ(line.accepted->error().code, ErrorCode::kDenied);
}

/// A member of the cluster whose own certificate is replaced.
std::shared_ptr<TlsContext> with_certificate(const Identity& identity, bool with_authority = true) {
  auto context = TlsContext::of_member(key_of());
  if (!with_authority) SSL_CTX_clear_chain_certs(context->native());
  EXPECT_EQ(SSL_CTX_use_certificate(context->native(), identity.certificate.get()), 1);
  EXPECT_EQ(SSL_CTX_use_PrivateKey(context->native(), identity.key.get()), 1);
  return context;
}
/// The authority's own private key, derived as the authority does.
PrivateKey authority_key() {
  const std::string_view label = "skate authority";
  const Digest seed =
      key_of().sign({std::span(reinterpret_cast<const uint8_t*>(label.data()), label.size())});
  return PrivateKey(EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr, seed.data(), seed.size()));
}

/// The server's reason for refusing a client with this certificate; empty when it lets it in.
std::string refusal_of(const Identity& identity) {
  TlsLine line(5, with_certificate(identity), TlsContext::of_member(key_of()));
  if (!line.accepted) return "nothing happened";
  return line.accepted->ok() ? "" : line.accepted->error().message;
}

TEST(Tls, OddCertificatesAreRefused) {
  const Authority authority(key_of());
  const PrivateKey signer = authority_key();
  EXPECT_EQ(refusal_of(authority.issue()), "");
  const auto refused_for = [&](const char* part, const std::function<void(X509*)>& change) {
    Identity identity = authority.issue();
    change(identity.certificate.get());
    const std::string why = refusal_of(identity);
    EXPECT_NE(why.find(part), std::string::npos) << "expected " << part << ", got: " << why;
  };
  refused_for("expired", [&](X509* certificate) {
    ASN1_TIME_set_string_X509(X509_getm_notAfter(certificate), "20200101000000Z");
    X509_sign(certificate, signer.get(), nullptr);
  });
  refused_for("not yet valid", [&](X509* certificate) {
    ASN1_TIME_set_string_X509(X509_getm_notBefore(certificate), "99980101000000Z");
    X509_sign(certificate, signer.get(), nullptr);
  });
  refused_for("signature failure", [&](X509* certificate) {  // changed after it was signed
    ASN1_TIME_set_string_X509(X509_getm_notAfter(certificate), "99981231235959Z");
  });
  const PrivateKey stranger(EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519"));
  refused_for("signature failure",
              [&](X509* certificate) { X509_sign(certificate, stranger.get(), nullptr); });

  // A node's certificate is not good for signing another one.
  const Identity node = authority.issue();
  Identity child = authority.issue();
  X509_set_issuer_name(child.certificate.get(), X509_get_subject_name(node.certificate.get()));
  X509_sign(child.certificate.get(), node.key.get(), nullptr);
  auto chained = with_certificate(child);
  SSL_CTX_add1_chain_cert(chained->native(), node.certificate.get());
  TlsLine line(6, chained, TlsContext::of_member(key_of()));
  ASSERT_TRUE(line.accepted && !line.accepted->ok());
  EXPECT_EQ(line.accepted->error().code, ErrorCode::kDenied);
}

TEST(Tls, NoClockMatters) {
  for (const time_t now : {time_t{1}, time_t{1} << 31, time_t{253'402'300'000}}) {
    const auto context = TlsContext::of_member(key_of());
    X509_VERIFY_PARAM_set_time(SSL_CTX_get0_param(context->native()), now);
    TlsLine line(7, context, TlsContext::of_member(key_of()));
    EXPECT_TRUE(line.met()) << now;
  }
}

TEST(Tls, AGuestMeetsTheAuthorityThatItKnowsAndNoOther) {
  const auto head = TlsContext::of_member(key_of());
  const Authority authority(key_of()), other(key_of("the key of another cluster"));
  TlsLine right(8, TlsContext::of_guest(authority.fingerprint()), head, {}, {}, TlsPeer::kGuest);
  EXPECT_TRUE(right.met());
  TlsLine wrong(9, TlsContext::of_guest(other.fingerprint()), head, {}, {}, TlsPeer::kGuest);
  ASSERT_TRUE(wrong.connected && wrong.accepted);
  EXPECT_EQ(wrong.connected->error().code, ErrorCode::kDenied);
  EXPECT_FALSE(wrong.accepted->ok());
  TlsLine uninvited(10, TlsContext::of_guest(authority.fingerprint()), head);
  ASSERT_TRUE(uninvited.accepted);
  EXPECT_EQ(uninvited.accepted->error().code, ErrorCode::kDenied) << "a member must have a certificate";

  // The right authority's certificate beside a node's that it has not signed.
  const Identity forged = other.issue();
  TlsLine liar(11, TlsContext::of_guest(authority.fingerprint()), with_certificate(forged), {}, {},
               TlsPeer::kGuest);
  ASSERT_TRUE(liar.connected);
  EXPECT_EQ(liar.connected->error().code, ErrorCode::kDenied);
  // And without it.
  TlsLine bare(12, TlsContext::of_guest(authority.fingerprint()), with_certificate(forged, false), {}, {},
               TlsPeer::kGuest);
  ASSERT_TRUE(bare.connected);
  EXPECT_EQ(bare.connected->error().code, ErrorCode::kDenied);
}

TEST(Tls, ACutIsALossAndNoEnd) {
  const auto context = TlsContext::of_member(key_of());
  TlsLine line(13, context, context);
  ASSERT_TRUE(line.met());
  std::optional<Result<void>> sent;
  line.group.spawn(write_all(line.near(), noise(1, 1000), &sent));
  line.loop.run();
  line.near()->close();
  std::vector<uint8_t> buffer(4096);
  std::optional<Result<size_t>> first, second, own;
  line.group.spawn(read_some(line.far(), &buffer, &first));
  line.loop.run();
  line.group.spawn(read_some(line.far(), &buffer, &second));
  line.group.spawn(read_some(line.near(), &buffer, &own));
  line.loop.run();
  ASSERT_TRUE(sent && first && second && own);
  EXPECT_EQ(first->value(), 1000u) << "what came before the cut is read";
  EXPECT_EQ(second->error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(own->error().code, ErrorCode::kUnavailable);
}

TEST(Tls, WhatWasChangedIsNotRead) {
  const auto context = TlsContext::of_member(key_of());
  size_t handshake_bytes = 0;
  {
    Faults count;
    count.read_bytes = &handshake_bytes;
    TlsLine line(14, context, context, {}, count);
    ASSERT_TRUE(line.met());
  }
  const auto text = noise(1, 40'000);  // three records
  for (const size_t at : {0, 3, 5, 1000, 16384 + 30, 2 * 16406 + 100}) {
    Faults flipped;
    flipped.flip_at = handshake_bytes + at;
    TlsLine line(14, context, context, {}, flipped);
    ASSERT_TRUE(line.met());
    std::optional<Result<void>> sent;
    line.group.spawn(write_all(line.near(), text, &sent));
    std::vector<uint8_t> all;
    std::optional<Result<size_t>> got;
    do {
      std::vector<uint8_t> buffer(5000);
      got.reset();
      line.group.spawn(read_some(line.far(), &buffer, &got));
      line.loop.run_for(1s);
      if (got && got->ok()) all.insert(all.end(), buffer.begin(), buffer.begin() + got->value());
    } while (got && got->ok());
    if (got) {
      EXPECT_EQ(got->error().code, ErrorCode::kCorrupt);
    }
    EXPECT_EQ(all.size(), at / 16406 * 16384) << "whole records before the changed one, flipped at " << at;
    EXPECT_TRUE(std::equal(all.begin(), all.end(), text.begin()));
    std::optional<Result<void>> after;
    if (got) {
      line.group.spawn(write_all(line.far(), text, &after));
      line.loop.run_for(1s);
      EXPECT_TRUE(after && !after->ok()) << "the connection is over in both directions";
    }
  }
}

TEST(Tls, ClosingWakesReadersAndWriters) {
  const auto context = TlsContext::of_member(key_of());
  for (const bool by_peer : {false, true}) {
    TlsLine line(15, context, context);
    ASSERT_TRUE(line.met());
    std::vector<uint8_t> buffer(100);
    std::optional<Result<size_t>> got;
    std::optional<Result<void>> sent;
    line.group.spawn(read_some(line.near(), &buffer, &got));
    line.group.spawn(write_all(line.near(), noise(1, 8 << 20), &sent));  // nobody reads it
    line.loop.run_for(1s);
    EXPECT_FALSE(got || sent);
    TlsStream* closing = by_peer ? line.far() : line.near();
    closing->close();
    closing->close();
    line.loop.run_for(1s);
    ASSERT_TRUE(got && sent);
    EXPECT_EQ(got->error().code, ErrorCode::kUnavailable);
    EXPECT_EQ(sent->error().code, ErrorCode::kUnavailable);
    std::optional<Result<void>> after;
    line.group.spawn(write_all(line.near(), noise(1, 10), &after));
    line.loop.run_for(1s);
    EXPECT_TRUE(after && !after->ok());
  }
}

TEST(Tls, CancelledReadsLoseNothingAndCancelledWritesEndIt) {
  const auto context = TlsContext::of_member(key_of());
  TlsLine line(16, context, context);
  ASSERT_TRUE(line.met());
  std::vector<uint8_t> buffer(100'000);
  std::optional<Result<size_t>> got;
  {
    rt::TaskGroup cancelled(line.loop);
    cancelled.spawn(read_some(line.far(), &buffer, &got));
    line.loop.run_for(1s);
  }
  std::optional<Result<void>> sent, endless, after;
  line.group.spawn(write_all(line.near(), noise(1, 100), &sent));
  line.group.spawn(read_some(line.far(), &buffer, &got));
  line.loop.run_for(1s);
  ASSERT_TRUE(got && got->ok());
  EXPECT_EQ(got->value(), 100u);
  {
    rt::TaskGroup cancelled(line.loop);
    cancelled.spawn(write_all(line.near(), noise(1, 8 << 20), &endless));
    line.loop.run_for(1s);
  }
  EXPECT_FALSE(endless);
  line.group.spawn(write_all(line.near(), noise(1, 100), &after));
  line.loop.run_for(1s);
  ASSERT_TRUE(after);
  EXPECT_EQ(after->error().code, ErrorCode::kUnavailable);
}

/// enter() against admit().
struct Meeting : Line {
  Meeting(uint64_t seed, Membership guest, Membership host, Faults at_client = {}, Faults at_server = {})
      : Line(seed), group(loop) {
    StreamPtr near = std::make_unique<FaultyStream>(std::move(client), at_client);
    StreamPtr far = std::make_unique<FaultyStream>(std::move(server), at_server);
    group.spawn(keep(rt::with_timeout(5s, enter(std::move(near), std::move(guest))), &entered));
    group.spawn(keep(rt::with_timeout(5s, admit(std::move(far), std::move(host), false)), &admitted));
    loop.run();
  }
  bool both() const { return entered && entered->ok() && admitted && admitted->ok(); }
  std::optional<Result<StreamPtr>> entered;
  std::optional<Result<Admitted>> admitted;
  rt::TaskGroup group;
};

Membership member(std::shared_ptr<TlsContext> tls, Follows follows = Follows::kTls) {
  return Membership{key_of(), "1.0", follows, std::move(tls)};
}

TEST(Admission, CutAtEveryByteItFailsAtBothEnds) {
  const auto context = TlsContext::of_member(key_of());
  size_t client_bytes = 0, server_bytes = 0;
  Faults count_client, count_server;
  count_client.read_bytes = &client_bytes;
  count_server.read_bytes = &server_bytes;
  ASSERT_TRUE(Meeting(1, member(context), member(context), count_client, count_server).both());
  ASSERT_GT(client_bytes, kGateBytes + 200);
  ASSERT_GT(server_bytes, kGateBytes + 200);
  for (size_t at = 0; at < server_bytes; ++at) {
    Faults cut;
    cut.cut_at = at;
    Meeting meeting(1, member(context), member(context), {}, cut);
    ASSERT_TRUE(meeting.entered && meeting.admitted) << at;
    ASSERT_FALSE(meeting.entered->ok()) << at;
    ASSERT_FALSE(meeting.admitted->ok()) << at;
  }
  for (size_t at = 0; at < client_bytes; ++at) {
    Faults cut;
    cut.cut_at = at;
    Meeting meeting(1, member(context), member(context), cut);
    ASSERT_TRUE(meeting.entered && meeting.admitted) << at;
    ASSERT_FALSE(meeting.entered->ok()) << at;
  }
}

TEST(Admission, AFlippedBitFailsAtTheEndThatReadsIt) {
  const auto context = TlsContext::of_member(key_of());
  size_t client_bytes = 0, server_bytes = 0;
  Faults count_client, count_server;
  count_client.read_bytes = &client_bytes;
  count_server.read_bytes = &server_bytes;
  ASSERT_TRUE(Meeting(1, member(context), member(context), count_client, count_server).both());
  // The version in the head of a record in clear means nothing in TLS 1.3.
  const std::set<size_t> idle = {kGateBytes + 1, kGateBytes + 2};
  for (size_t at = 0; at < server_bytes; ++at) {
    Faults flip;
    flip.flip_at = at;
    flip.flip = static_cast<uint8_t>(1u << (at % 8));
    Meeting meeting(1, member(context), member(context), {}, flip);
    ASSERT_TRUE(meeting.entered && meeting.admitted) << at;
    if (meeting.admitted->ok()) {
      EXPECT_TRUE(idle.contains(at)) << at;
    }
    EXPECT_EQ(meeting.entered->ok(), meeting.admitted->ok()) << at;
  }
  for (size_t at = 0; at < client_bytes; ++at) {
    Faults flip;
    flip.flip_at = at;
    flip.flip = static_cast<uint8_t>(1u << (at % 8));
    Meeting meeting(1, member(context), member(context), flip);
    ASSERT_TRUE(meeting.entered && meeting.admitted) << at;
    if (meeting.entered->ok()) {
      EXPECT_TRUE(idle.contains(at)) << at;
    }
  }
}

TEST(Admission, PeersThatStallAreGivenUp) {
  const auto context = TlsContext::of_member(key_of());
  for (const size_t at : {size_t{0}, size_t{50}, Greeting::kBytes, kGateBytes, kGateBytes + 1,
                          kGateBytes + 100, kGateBytes + 300}) {
    Faults stall;
    stall.stall_at = at;
    Meeting server_waits(1, member(context), member(context), {}, stall);
    ASSERT_TRUE(server_waits.admitted && server_waits.entered) << at;
    EXPECT_EQ(server_waits.admitted->error().code, ErrorCode::kTimeout) << at;
    EXPECT_FALSE(server_waits.entered->ok()) << at;
    Meeting client_waits(1, member(context), member(context), stall);
    ASSERT_TRUE(client_waits.admitted && client_waits.entered) << at;
    EXPECT_EQ(client_waits.entered->error().code, ErrorCode::kTimeout) << at;
    EXPECT_FALSE(client_waits.admitted->ok()) << at;
  }
}

TEST(Admission, BothEndsMustAgreeAboutTls) {
  const auto context = TlsContext::of_member(key_of());
  EXPECT_TRUE(Meeting(1, member({}, Follows::kFrames), member({}, Follows::kFrames)).both());
  Meeting plain_client(2, member({}, Follows::kFrames), member(context));
  ASSERT_TRUE(plain_client.entered && plain_client.admitted);
  EXPECT_EQ(plain_client.entered->error(),
            (Error{ErrorCode::kInvalid,
                   "the cluster uses TLS, but this process was started with --insecure: "
                   "start it without"}));
  EXPECT_EQ(plain_client.admitted->error().code, ErrorCode::kInvalid);
  Meeting plain_server(3, member(context), member({}, Follows::kFrames));
  ASSERT_TRUE(plain_server.entered && plain_server.admitted);
  EXPECT_EQ(
      plain_server.entered->error(),
      (Error{ErrorCode::kInvalid,
             "the cluster was started with --insecure and uses no TLS, but this process wants it: start "
             "both in the same way"}));
  EXPECT_EQ(plain_server.admitted->error().code, ErrorCode::kInvalid);
}

TEST(Admission, FollowsTheAddress) {
  EXPECT_EQ(follows_at("unix:/tmp/x", TcpSecurity::kTls), Follows::kFrames);
  EXPECT_EQ(follows_at("unix:/tmp/x", TcpSecurity::kInsecure), Follows::kFrames);
  EXPECT_EQ(follows_at("tcp:127.0.0.1:1", TcpSecurity::kTls), Follows::kTls);
  EXPECT_EQ(follows_at("tcp:127.0.0.1:1", TcpSecurity::kInsecure), Follows::kFrames);
}

TEST(Admission, ASealOfAnotherHandshakeOrConnectionIsRefused) {
  const Handshake ours{key_of(), Follows::kTls, {}, Digest{1}}, other{key_of(), Follows::kTls, {}, Digest{2}};
  const Digest binding{3}, other_binding{4};
  const auto sealed = [](const Handshake& near, const Digest& near_binding, const Handshake& far,
                         const Digest& far_binding) {
    Line line(1);
    std::optional<Result<void>> client, server;
    line.tasks.spawn(keep(seal_as_client(line.client.get(), near, near_binding), &client));
    line.tasks.spawn(keep(seal_as_server(line.server.get(), far, far_binding), &server));
    line.loop.run_for(1s);
    EXPECT_TRUE(server);
    if (server && !server->ok()) {
      EXPECT_EQ(server->error().code, ErrorCode::kDenied);
    }
    return client && client->ok() && server && server->ok();
  };
  EXPECT_TRUE(sealed(ours, binding, ours, binding));
  EXPECT_FALSE(sealed(ours, binding, other, binding));
  EXPECT_FALSE(sealed(ours, binding, ours, other_binding));
  const Handshake wrong_key{key_of("the key of another cluster"), Follows::kTls, {}, Digest{1}};
  EXPECT_FALSE(sealed(wrong_key, binding, ours, binding));
}

/// Through a loop of its own, which it stops.
rt::Task<void> run_traffic(rt::Loop* loop, rt::Network* network, rt::Listener* listener,
                           std::shared_ptr<TlsContext> context, size_t bytes, bool* same) {
  const auto up = noise(1, bytes), down = noise(2, bytes);
  StreamPtr below_near, below_far;
  std::optional<TlsStream::Connected> connected, accepted;
  rt::TaskGroup group(*loop);
  group.spawn(dial(network, listener->address(), &below_near));
  group.spawn(pick_up(listener, &below_far));
  co_await group.join();
  group.spawn(keep(TlsStream::connect(std::move(below_near), context), &connected));
  group.spawn(keep(TlsStream::accept(std::move(below_far), context), &accepted));
  co_await group.join();
  EXPECT_TRUE(connected->ok() && accepted->ok());
  bool up_same = false, down_same = false;
  if (connected->ok() && accepted->ok()) {
    TlsStream* near = connected->value().get();
    TlsStream* far = accepted->value().get();
    group.spawn(pour(near, up, 1));
    group.spawn(pour(far, down, 2));
    group.spawn(compare(far, up, 3, &up_same));
    group.spawn(compare(near, down, 4, &down_same));
    co_await group.join();
  }
  *same = up_same && down_same;
  loop->stop();
}

TEST(Tls, BulkBothWaysOverLoopback) {
  std::unique_ptr<rt::Loop> loop = rt::make_loop();
  std::unique_ptr<rt::Network> network = rt::make_network(*loop);
  std::unique_ptr<rt::Listener> listener = std::move(*network->listen("tcp:127.0.0.1:0"));
  bool same = false;
  rt::TaskGroup tasks(*loop);
  tasks.spawn(run_traffic(loop.get(), network.get(), listener.get(), TlsContext::of_member(key_of()),
                          64 << 20, &same));
  loop->run();
  EXPECT_TRUE(same);
}

}  // namespace
}  // namespace skate::rpc
