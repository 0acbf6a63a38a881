// Calls with messages instead of bytes.
#pragma once

#include "rpc/client.h"
#include "wire/archive.h"

namespace skate::rpc {

/// Result<Reply> reply = co_await rpc::call<Reply>(&client, Method::kX, message);
template <class Reply, class Method, class Message>
rt::Task<Result<Reply>> call(Client* client, Method method, Message message, CallOptions options = {}) {
  std::string body = wire::encode(message);
  Result<std::string> reply = co_await client->call(static_cast<uint16_t>(method), std::move(body), options);
  if (!reply) co_return reply.error();
  co_return wire::decode<Reply>(std::string_view(*reply));
}

}  // namespace skate::rpc
