#include "rpc/admission.h"

#include "rpc/join.h"

namespace skate::rpc {

namespace {

Judge judge_for(const Membership& me, bool joins, int64_t now_unix_s) {
  Judge members = expect(me.key, me.follows);
  // Without TLS the key would go in clear.
  if (!joins || me.follows != Follows::kTls) return members;
  return [members = std::move(members), key = me.key, now_unix_s](const Greeting& opening) {
    return opening.follows == Follows::kJoin ? judge_claim(key, opening.claim, now_unix_s) : members(opening);
  };
}

}  // namespace

Follows follows_at(const std::string& address, TcpSecurity tcp) {
  return address.starts_with("tcp:") && tcp == TcpSecurity::kTls ? Follows::kTls : Follows::kFrames;
}

rt::Task<Result<std::unique_ptr<rt::Stream>>> enter(std::unique_ptr<rt::Stream> stream, Membership me) {
  Wish wish{me.follows, {}};
  Result<Handshake> known = co_await handshake_as_client(stream.get(), me.key, me.release, wish);
  if (!known) co_return known.error();
  if (me.follows == Follows::kFrames) co_return std::move(stream);
  TlsStream::Connected tls = co_await TlsStream::connect(std::move(stream), me.tls);
  if (!tls) co_return tls.error();
  Digest binding = (*tls)->binding();
  Result<void> sealed = co_await seal_as_client(tls->get(), *known, binding);
  if (!sealed) co_return sealed.error();
  co_return std::unique_ptr<rt::Stream>(std::move(*tls));
}

rt::Task<Result<Admitted>> admit(std::unique_ptr<rt::Stream> stream, Membership me, bool joins) {
  rt::Loop& loop = co_await rt::this_loop();
  Judge judge = judge_for(me, joins, loop.unix_time_ms() / 1000);
  Result<Handshake> known = co_await handshake_as_server(stream.get(), me.release, std::move(judge));
  if (!known) co_return known.error();
  if (known->follows == Follows::kFrames) co_return Admitted{std::move(stream), std::nullopt};
  if (known->follows == Follows::kJoin) {
    Result<void> given = co_await give_key(std::move(stream), *known, me.key, me.tls);
    if (!given) co_return given.error();
    co_return Admitted{nullptr, token_name(known->claim)};
  }
  TlsStream::Connected tls = co_await TlsStream::accept(std::move(stream), me.tls);
  if (!tls) co_return tls.error();
  Digest binding = (*tls)->binding();
  Result<void> sealed = co_await seal_as_server(tls->get(), *known, binding);
  if (!sealed) co_return sealed.error();
  co_return Admitted{std::move(*tls), std::nullopt};
}

}  // namespace skate::rpc
