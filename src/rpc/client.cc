#include "rpc/client.h"

#include <algorithm>
#include <vector>

#include "rt/sleep.h"

namespace skate::rpc {

Client::Client(rt::Loop& loop, rt::Network& network, ClientOptions options)
    : loop_(loop), network_(network), options_(std::move(options)), tasks_(loop) {}

Client::~Client() { stop(); }

void Client::start() { tasks_.spawn(run()); }

void Client::stop() {
  if (std::exchange(stopped_, true)) return;
  tasks_.stop();
  connection_.reset();
  up_ = false;
  auto calls = std::move(calls_);
  calls_.clear();
  for (auto& [id, call] : calls) {
    call->result = Error{ErrorCode::kCancelled, "the client has stopped"};
    call->done.set();
  }
}

rt::Task<Result<std::string>> Client::call(uint16_t method, std::string body, CallOptions options) {
  if (stopped_) co_return Error{ErrorCode::kCancelled, "the client has stopped"};
  if (body.size() > options_.limits.frame_bytes_max)
    co_return Error{ErrorCode::kFull, "a message of " + std::to_string(body.size()) +
                                          " bytes exceeds the limit of " +
                                          std::to_string(options_.limits.frame_bytes_max)};
  if (calls_.size() >= options_.calls_max) co_return Error{ErrorCode::kFull, "too many calls are under way"};
  if (options.on_loss == OnLoss::kFail && !up_ && !options.greeting)
    co_return Error{ErrorCode::kUnavailable, "not connected to " + options_.address};
  auto call = std::make_shared<Call>();
  call->header.kind = FrameKind::kRequest;
  call->header.method = method;
  call->header.id = next_id_++;
  call->body = std::move(body);
  call->options = options;
  call->deadline =
      options.timeout > rt::Duration::zero() ? loop_.now() + options.timeout : rt::TimePoint::max();
  calls_[call->header.id] = call;
  struct Forget {  // also when the caller is cancelled
    Client& client;
    uint64_t id;
    ~Forget() { client.calls_.erase(id); }
  } forget{*this, call->header.id};
  if (up_ || (options.greeting && connection_ != nullptr)) send(*call);
  if (call->deadline == rt::TimePoint::max()) co_return co_await wait_done(call);
  Result<std::string> result = co_await rt::with_deadline(call->deadline, wait_done(call));
  if (!result && result.error().code == ErrorCode::kTimeout && !call->result)
    co_return Error{ErrorCode::kTimeout, up_ ? "no answer from " + options_.address + " in time"
                                             : "no connection to " + options_.address + " in time"};
  co_return result;
}

void Client::post(uint16_t method, std::string body, std::function<void(Result<std::string>)> done) {
  if (stopped_) return;
  auto call = std::make_shared<Call>();
  call->header.kind = FrameKind::kRequest;
  call->header.method = method;
  call->header.id = next_id_++;
  call->body = std::move(body);
  call->deadline = rt::TimePoint::max();
  call->posted = std::move(done);
  calls_[call->header.id] = call;
  if (up_) send(*call);
}

rt::Task<Result<std::string>> Client::wait_done(std::shared_ptr<Call> call) {
  co_await call->done.wait();
  co_return std::move(*call->result);
}

void Client::send(Call& call) {
  call.sent = true;
  if (call.deadline != rt::TimePoint::max()) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(call.deadline - loop_.now()).count();
    call.header.timeout_ms = static_cast<uint32_t>(std::clamp<int64_t>(left, 1, UINT32_MAX));
  }
  const int copies = options_.send_twice && call.options.on_loss == OnLoss::kResend ? 2 : 1;
  for (int i = 0; i < copies; ++i)
    connection_->send(call.header, call.body);  // a closed connection is noticed by its reader
}

void Client::finish(uint64_t id, Result<std::string> result) {
  const auto found = calls_.find(id);
  if (found == calls_.end()) return;  // given up, or answered twice
  const std::shared_ptr<Call> call = found->second;
  calls_.erase(found);
  if (call->posted) return call->posted(std::move(result));
  call->result = std::move(result);
  call->done.set();
}

void Client::lose(const Error& why) {
  const bool was_up = std::exchange(up_, false);
  up_event_.reset();
  std::vector<uint64_t> failed;
  for (auto& [id, call] : calls_) {
    const bool fails = call->options.on_loss == OnLoss::kFail || call->options.greeting;
    if (fails && call->sent) failed.push_back(id);
    call->sent = false;
  }
  for (const uint64_t id : failed) finish(id, Error{ErrorCode::kUnavailable, why.message});
  if (was_up && options_.on_state) options_.on_state(false, why);
}

rt::Task<void> Client::run() {
  rt::Duration pause = options_.backoff_min;
  while (true) {
    const rt::TimePoint began = loop_.now();
    Result<void> ended = co_await run_connection();
    connection_.reset();
    const bool was_up = up_;
    lose(ended.error());
    if (!was_up && options_.on_state) options_.on_state(false, ended.error());
    if (was_up && loop_.now() - began > options_.backoff_max) pause = options_.backoff_min;
    // Half of the pause is chance, so that the clients of a restarted server do not come in step.
    const auto half = static_cast<uint64_t>(pause.count() / 2);
    co_await rt::sleep_for(rt::Duration(half + loop_.random().below(half + 1)));
    pause = std::min(pause * 2, options_.backoff_max);
  }
}

rt::Task<Result<void>> Client::run_connection() {
  Result<std::unique_ptr<rt::Stream>> stream =
      co_await rt::with_timeout(options_.handshake_timeout, network_.connect(options_.address));
  if (!stream) co_return stream.error();
  const Follows follows = follows_at(options_.address, options_.tcp);
  if (follows == Follows::kTls && options_.tls == nullptr) options_.tls = TlsContext::of_member(options_.key);
  Membership me{options_.key, options_.release, follows, options_.tls};
  rt::Task<Result<std::unique_ptr<rt::Stream>>> entering = enter(std::move(*stream), std::move(me));
  Result<std::unique_ptr<rt::Stream>> known =
      co_await rt::with_timeout(options_.handshake_timeout, std::move(entering));
  if (!known) co_return known.error();
  connection_ = std::make_unique<Connection>(loop_, std::move(*known), options_.limits);
  rt::TaskGroup greeting(loop_);
  greeting.spawn(greet_and_open());
  while (true) {
    Result<Frame> frame = co_await connection_->receive();
    if (!frame) co_return frame.error();
    if (frame->header.kind == FrameKind::kReply) {
      const uint64_t id = frame->header.id;
      finish(id, reply_result(std::move(*frame)));
    } else if (frame->header.kind == FrameKind::kNotify) {
      if (options_.on_notify) options_.on_notify(frame->header.method, std::move(frame->body));
    } else {
      co_return Error{ErrorCode::kCorrupt, "a server sends no requests"};
    }
  }
}

rt::Task<void> Client::greet_and_open() {
  if (options_.greet) {
    Result<void> greeted = co_await options_.greet(this);
    if (!greeted) {
      connection_->close();
      co_return;
    }
  }
  up_ = true;
  up_event_.set();
  for (auto& [id, call] : calls_) {
    if (!call->sent) send(*call);
  }
  if (options_.on_state) options_.on_state(true, Error{});
}

}  // namespace skate::rpc
