#include "rpc/server.h"

#include "rpc/handshake.h"
#include "rt/sleep.h"

namespace skate::rpc {

namespace {

struct Decrement {
  size_t& count;
  ~Decrement() { --count; }
};

}  // namespace

bool Peer::notify(uint16_t topic, std::string_view body) {
  if (connection_ == nullptr) return false;
  FrameHeader header;
  header.kind = FrameKind::kNotify;
  header.method = topic;
  return connection_->send(header, body);
}

void Peer::close() {
  if (connection_ != nullptr) connection_->close();
}

Server::Server(rt::Loop& loop, Service& service, ServerOptions options)
    : loop_(loop), service_(service), options_(std::move(options)), tasks_(loop) {}

Server::~Server() { stop(); }

Result<std::string> Server::listen(rt::Network& network, std::string address) {
  SKATE_TRY_ASSIGN(std::unique_ptr<rt::Listener> listener, network.listen(std::move(address)));
  std::string bound = listener->address();
  const Follows follows = follows_at(bound, options_.tcp);
  if (follows == Follows::kTls && options_.tls == nullptr) options_.tls = TlsContext::of_member(options_.key);
  tasks_.spawn(accept_loop(std::move(listener), follows));
  return bound;
}

void Server::stop() {
  tasks_.stop();
  auto peers = std::move(peers_);
  peers_.clear();
  for (auto& [id, peer] : peers) peer->connection_.reset();
}

rt::Task<void> Server::accept_loop(std::unique_ptr<rt::Listener> listener, Follows follows) {
  while (true) {
    Result<std::unique_ptr<rt::Stream>> stream = co_await listener->accept();
    if (!stream) {
      log_refusal(stream.error());
      co_await rt::sleep_for(std::chrono::milliseconds(100));  // no descriptors left: others must end first
      continue;
    }
    ++counts_.accepted;
    if (counts_.strangers >= options_.strangers_max || counts_.peers >= options_.peers_max) {
      ++counts_.turned_away;
      const std::unique_ptr<rt::Stream> unwanted = std::move(*stream);
      // A fresh socket takes a greeting without waiting; one that does not is dropped as well.
      Result<void> told = co_await rt::with_timeout(std::chrono::milliseconds(1),
                                                    turn_away(unwanted.get(), options_.release));
      log_refusal(told ? Error{ErrorCode::kFull, "too many connections"} : told.error());
      continue;
    }
    ++counts_.strangers;
    tasks_.spawn(serve(std::move(*stream), follows));
  }
}

void Server::log_refusal(const Error& error) {
  ++refusals_unlogged_;
  if (!options_.log || loop_.now() < next_log_) return;
  next_log_ = loop_.now() + options_.log_interval;
  options_.log(std::to_string(refusals_unlogged_) + " connections refused, the last one: " + error.message);
  refusals_unlogged_ = 0;
}

rt::Task<void> Server::serve(std::unique_ptr<rt::Stream> stream, Follows follows) {
  std::string name = stream->peer();
  std::unique_ptr<rt::Stream> member;
  {
    Decrement stranger{counts_.strangers};
    Membership me{options_.key, options_.release, follows, options_.tls};
    rt::Task<Result<Admitted>> admission = admit(std::move(stream), std::move(me), options_.joins);
    Result<Admitted> known = co_await rt::with_timeout(options_.handshake_timeout, std::move(admission));
    if (!known) {
      ++counts_.refused;
      const bool late = known.error().code == ErrorCode::kTimeout;
      log_refusal(late ? Error{ErrorCode::kTimeout, "the peer (" + name + ") took too long for the handshake"}
                       : known.error());
      co_return;
    }
    if (known->joined_token) {
      ++counts_.joined;
      if (options_.log) options_.log(name + " has got the cluster key for the token " + *known->joined_token);
      co_return;
    }
    member = std::move(known->stream);
  }
  ++counts_.peers;
  Decrement peer_count{counts_.peers};
  auto peer = std::make_shared<Peer>();
  peer->id_ = next_peer_++;
  peer->connection_ = std::make_unique<Connection>(loop_, std::move(member), options_.limits);
  peers_[peer->id_] = peer;
  service_.connected(*peer);
  co_await serve_peer(peer);
  peers_.erase(peer->id_);
  peer->connection_.reset();
  service_.disconnected(*peer);
}

rt::Task<void> Server::serve_peer(std::shared_ptr<Peer> peer) {
  rt::WaitList ended;
  rt::TaskGroup requests(loop_);
  while (true) {
    while (requests.size() >= options_.requests_max && !peer->connection_->closed()) co_await ended.wait();
    Result<Frame> frame = co_await peer->connection_->receive();
    if (!frame) co_return;
    // Replies and notifications are the server's to send; from a client they mean nothing.
    if (frame->header.kind != FrameKind::kRequest) continue;
    Request request{frame->header.method, std::move(frame->body)};
    rt::Task<Result<std::string>> work = service_.call(peer, std::move(request));
    requests.spawn(answer(peer, frame->header, std::move(work), &ended));
  }
}

rt::Task<void> Server::answer(std::shared_ptr<Peer> peer, FrameHeader header,
                              rt::Task<Result<std::string>> work, rt::WaitList* ended) {
  if (header.timeout_ms > 0)
    work = rt::with_timeout(std::chrono::milliseconds(header.timeout_ms), std::move(work));
  Result<std::string> result = co_await std::move(work);
  FrameHeader reply;
  reply.kind = FrameKind::kReply;
  reply.id = header.id;
  reply.method = header.method;
  if (!result) reply.code = static_cast<uint8_t>(static_cast<uint8_t>(result.error().code) + 1);
  if (peer->connection_ != nullptr) peer->connection_->send(reply, result ? *result : result.error().message);
  ended->wake_all();  // the reader looks once this task has returned
}

}  // namespace skate::rpc
