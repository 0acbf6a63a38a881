// Join tokens: their text, and the exchange with a server that gives keys and with those that do not.
#include "rpc/join.h"

#include <gtest/gtest.h>

#include <vector>

#include "rpc/server.h"
#include "rpc/tls_testing.h"
#include "rt/sim_network.h"
#include "rt/task_group.h"

namespace skate::rpc {
namespace {

using namespace std::chrono_literals;

ClusterKey key_of(const char* text = "the key of the tests") { return *ClusterKey::from_bytes(text); }
constexpr int64_t kNow = 1'700'000'000;  // the simulated loop's

class NoService final : public Service {
 public:
  rt::Task<Result<std::string>> call(std::shared_ptr<Peer>, Request) override { co_return std::string(); }
  void connected(Peer&) override { ++peers; }
  void disconnected(Peer&) override { --peers; }
  int peers = 0;
};

rt::Task<void> join_into(rt::Network* network, std::string address, JoinToken token, std::string release,
                         std::optional<Result<ClusterKey>>* out) {
  Result<ClusterKey> key = co_await join_cluster(network, std::move(address), token, std::move(release), 5s);
  out->emplace(std::move(key));
}

struct Head {
  explicit Head(uint64_t seed, bool joins = true, TcpSecurity tcp = TcpSecurity::kTls)
      : loop(seed), network(loop, {}), server(loop, service, options(joins, tcp)), tasks(loop) {
    EXPECT_TRUE(server.listen(network, "tcp:head:1").ok());
  }
  ServerOptions options(bool joins, TcpSecurity tcp) {
    ServerOptions out{.key = key_of(), .release = "1.0"};
    out.tcp = tcp;
    out.joins = joins;
    out.log = [this](std::string line) { log.push_back(std::move(line)); };
    return out;
  }
  Result<ClusterKey> join(JoinToken token, std::string release = "1.0", std::string address = "tcp:head:1") {
    std::optional<Result<ClusterKey>> got;
    tasks.spawn(join_into(&network, std::move(address), token, std::move(release), &got));
    loop.run_for(10s);
    EXPECT_TRUE(got);
    return got ? *got : Error{};
  }

  std::vector<std::string> log;
  rt::SimLoop loop;
  rt::SimNetwork network;
  NoService service;
  Server server;
  rt::TaskGroup tasks;
};

TEST(JoinToken, IsALineOfText) {
  const JoinToken token = make_join_token(key_of(), kNow + 60);
  const std::string text = to_text(token);
  EXPECT_EQ(*parse_join_token(text), token);
  EXPECT_EQ(*parse_join_token("  " + text + "\r\n"), token);
  EXPECT_EQ(text.find_first_not_of("skt1_0123456789abcdef"), std::string::npos)
      << "one word for a double click";
  EXPECT_NE(to_text(make_join_token(key_of(), kNow + 60)), text);
  EXPECT_EQ(make_join_token(key_of(), INT64_MAX).expires_unix_s, 253'402'300'799);
  EXPECT_TRUE(parse_join_token(to_text(make_join_token(key_of(), INT64_MAX))).ok());
}

TEST(JoinToken, WhatIsWrongWithATextIsTold) {
  const std::string text = to_text(make_join_token(key_of(), kNow + 60));
  const auto why = [](const std::string& wrong) {
    Result<JoinToken> parsed = parse_join_token(wrong);
    EXPECT_FALSE(parsed.ok()) << wrong;
    if (parsed.ok()) return std::string();
    EXPECT_EQ(parsed.error().code, ErrorCode::kInvalid);
    EXPECT_NE(parsed.error().message.find("make a new token"), std::string::npos);
    return parsed.error().message;
  };
  EXPECT_NE(why("").find("it is empty"), std::string::npos);
  EXPECT_NE(why(" \n").find("it is empty"), std::string::npos);
  EXPECT_NE(why("hello").find("does not begin with skt1_"), std::string::npos);
  EXPECT_NE(why("skt2_" + text.substr(5)).find("does not begin with skt1_"), std::string::npos);
  EXPECT_NE(why(text + "0").find("it has 110 characters, not 109"), std::string::npos);
  EXPECT_NE(why(text.substr(0, 108) + "g").find("other characters"), std::string::npos);
  for (size_t size = 0; size < text.size(); ++size) {
    const std::string message = why(text.substr(0, size));
    EXPECT_TRUE(size < 8 || message.find(text.substr(0, size)) == std::string::npos)
        << "a secret in an error";
  }
  for (size_t at = 5; at < text.size(); ++at) {
    std::string changed = text;
    changed[at] = changed[at] == '0' ? '1' : '0';
    EXPECT_NE(why(changed).find("a character was changed"), std::string::npos) << at;
  }
}

TEST(JoinToken, TheClaimDecidesTheSecret) {
  const JoinToken token = make_join_token(key_of(), kNow + 60);
  const Verdict good = judge_claim(key_of(), token.claim(), kNow + 59);
  ASSERT_TRUE(good.key);
  EXPECT_EQ(judge_claim(key_of(), token.claim(), kNow + 60).status, HandshakeStatus::kTokenExpired);
  JoinToken longer = token;
  longer.expires_unix_s += 1'000'000;
  EXPECT_NE(judge_claim(key_of(), longer.claim(), kNow).key, good.key);
  EXPECT_NE(judge_claim(key_of("the key of another cluster"), token.claim(), kNow).key, good.key);
  EXPECT_NE(*good.key, key_of());
}

TEST(Join, AGoodTokenGetsTheKey) {
  Head head(1);
  const JoinToken token = make_join_token(key_of(), kNow + 60);
  EXPECT_EQ(*head.join(token), key_of());
  EXPECT_EQ(*head.join(*parse_join_token(to_text(token))), key_of())
      << "until it expires, as often as wanted";
  EXPECT_EQ(head.server.counts().joined, 2u);
  EXPECT_EQ(head.service.peers, 0) << "who joins is no peer yet";
  ASSERT_EQ(head.log.size(), 2u);
  EXPECT_EQ(head.log[0], "simulated has got the cluster key for the token " + token_name(token.claim()));
}

TEST(Join, ErrorsNameCauseAndNextStep) {
  Head head(2);
  const JoinToken good = make_join_token(key_of(), kNow + 3600);
  const auto error = [&](const JoinToken& token, std::string release = "1.0",
                         std::string address = "tcp:head:1") {
    Result<ClusterKey> key = head.join(token, std::move(release), std::move(address));
    EXPECT_FALSE(key.ok());
    return key.ok() ? Error{} : key.error();
  };
  const std::string at = "cannot join the cluster at tcp:head:1: ";
  EXPECT_EQ(error(make_join_token(key_of(), kNow)),
            (Error{ErrorCode::kInvalid,
                   at + "by the head's clock the join token has expired: make a new one on the head"}));
  const Error refused{ErrorCode::kDenied,
                      at + "the head refused the join token: it is another cluster's, or the head's key has "
                           "been changed since; make a new token on the head"};
  EXPECT_EQ(error(make_join_token(key_of("the key of another cluster"), kNow + 60)), refused);
  JoinToken changed = good;
  changed.expires_unix_s += 1;
  EXPECT_EQ(error(changed), refused);
  changed = good;
  changed.secret[0] ^= 1;
  EXPECT_EQ(error(changed), refused);
  changed = good;
  changed.authority[0] ^= 1;
  EXPECT_EQ(error(changed).code, ErrorCode::kDenied);
  EXPECT_EQ(error(good, "2.0").code, ErrorCode::kInvalid);
  EXPECT_EQ(error(good, "1.0", "tcp:nowhere:1"),
            (Error{ErrorCode::kUnavailable,
                   "cannot join the cluster at tcp:nowhere:1: cannot connect to "
                   "tcp:nowhere:1; check the address, and that the head runs"}));
  EXPECT_EQ(head.server.counts().joined, 0u);
  ASSERT_FALSE(head.log.empty());
  EXPECT_EQ(head.log[0],
            "1 connections refused, the last one: the join token of the peer (simulated) has expired");
}

TEST(Join, OnlyAHeadWithTlsGivesKeys) {
  const JoinToken token = make_join_token(key_of(), kNow + 60);
  for (const bool insecure : {false, true}) {
    Head other(3, insecure, insecure ? TcpSecurity::kInsecure : TcpSecurity::kTls);
    Result<ClusterKey> key = other.join(token);
    ASSERT_FALSE(key.ok());
    EXPECT_EQ(key.error().code, ErrorCode::kInvalid);
    EXPECT_NE(key.error().message.find("no join token is taken at this address"), std::string::npos);
  }
}

/// A head that proves the token, has the right certificate, and sends whatever key it likes.
rt::Task<void> give_wrong_key(rt::Listener* listener, ClusterKey wrong) {
  Result<std::unique_ptr<rt::Stream>> stream = co_await listener->accept();
  Judge judge = [](const Greeting& opening) { return judge_claim(key_of(), opening.claim, kNow); };
  std::string release = "1.0";
  Result<Handshake> known = co_await handshake_as_server(stream->get(), release, std::move(judge));
  EXPECT_TRUE(known.ok());
  if (!known) co_return;
  auto tls = TlsContext::of_member(key_of());
  Result<void> given = co_await give_key(std::move(*stream), *known, wrong, tls);
  EXPECT_TRUE(given.ok());
}

TEST(Join, AKeyOfAnotherAuthorityIsNotTaken) {
  rt::SimLoop loop(4);
  rt::SimNetwork network(loop, {});
  std::unique_ptr<rt::Listener> listener = std::move(*network.listen("tcp:head:1"));
  rt::TaskGroup tasks(loop);
  std::optional<Result<ClusterKey>> got;
  tasks.spawn(give_wrong_key(listener.get(), key_of("the key of another cluster")));
  tasks.spawn(join_into(&network, "tcp:head:1", make_join_token(key_of(), kNow + 60), "1.0", &got));
  loop.run();
  ASSERT_TRUE(got && !got->ok());
  EXPECT_EQ(got->error().code, ErrorCode::kDenied);
}

/// The network of a joiner whose incoming bytes suffer.
class FaultyNetwork final : public rt::Network {
 public:
  FaultyNetwork(rt::Network& below, Faults faults) : below_(below), faults_(faults) {}
  rt::Task<Result<std::unique_ptr<rt::Stream>>> connect(std::string address) override {
    Result<std::unique_ptr<rt::Stream>> stream = co_await below_.connect(std::move(address));
    if (!stream) co_return stream.error();
    co_return std::unique_ptr<rt::Stream>(std::make_unique<FaultyStream>(std::move(*stream), faults_));
  }
  Result<std::unique_ptr<rt::Listener>> listen(std::string address) override {
    return below_.listen(std::move(address));
  }

 private:
  rt::Network& below_;
  Faults faults_;
};

TEST(Join, CutAtEveryByteOrStalledItFails) {
  Head head(5);
  const JoinToken token = make_join_token(key_of(), kNow + 1'000'000);
  const auto join_through = [&](Faults faults) {
    FaultyNetwork network(head.network, faults);
    std::optional<Result<ClusterKey>> got;
    rt::TaskGroup tasks(head.loop);
    tasks.spawn(join_into(&network, "tcp:head:1", token, "1.0", &got));
    head.loop.run_for(10s);
    EXPECT_TRUE(got);
    return got ? *got : Error{};
  };
  size_t bytes = 0;
  Faults faults;
  faults.read_bytes = &bytes;
  EXPECT_TRUE(join_through(faults).ok());
  ASSERT_GT(bytes, 500u);
  for (size_t at = 0; at < bytes; ++at) {
    Faults cut;
    cut.cut_at = at;
    const Result<ClusterKey> key = join_through(cut);
    ASSERT_FALSE(key.ok()) << at;
    ASSERT_TRUE(key.error().code == ErrorCode::kUnavailable || key.error().code == ErrorCode::kDenied) << at;
  }
  for (size_t at = 0; at < bytes; at += 50) {
    Faults stall;
    stall.stall_at = at;
    EXPECT_EQ(join_through(stall).error().code, ErrorCode::kTimeout) << at;
  }
  EXPECT_EQ(head.server.counts().strangers, 0u);
}

rt::Task<void> join_and_stop(rt::Loop* loop, rt::Network* network, std::string address, JoinToken token,
                             std::optional<Result<ClusterKey>>* out) {
  Result<ClusterKey> key = co_await join_cluster(network, address, token, "1.0", 10s);
  out->emplace(std::move(key));
  loop->stop();
}

TEST(Join, OverLoopback) {
  std::unique_ptr<rt::Loop> loop = rt::make_loop();
  std::unique_ptr<rt::Network> network = rt::make_network(*loop);
  NoService service;
  const ClusterKey key = ClusterKey::random();
  ServerOptions options{.key = key, .release = "1.0"};
  options.joins = true;
  Server server(*loop, service, std::move(options));
  Result<std::string> bound = server.listen(*network, "tcp:127.0.0.1:0");
  ASSERT_TRUE(bound.ok());
  std::optional<Result<ClusterKey>> got;
  rt::TaskGroup tasks(*loop);
  const JoinToken token = make_join_token(key, loop->unix_time_ms() / 1000 + 60);
  tasks.spawn(join_and_stop(loop.get(), network.get(), *bound, token, &got));
  loop->run();
  ASSERT_TRUE(got);
  ASSERT_TRUE(got->ok()) << got->error().message;
  EXPECT_EQ(**got, key);
}

}  // namespace
}  // namespace skate::rpc
