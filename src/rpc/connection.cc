#include "rpc/connection.h"

#include <vector>

namespace skate::rpc {

namespace {
constexpr size_t kReadBytes = 64 << 10;
}

Connection::Connection(rt::Loop& loop, std::unique_ptr<rt::Stream> stream, ConnectionLimits limits)
    : stream_(std::move(stream)), limits_(limits), reader_(limits.frame_bytes_max), tasks_(loop) {
  tasks_.spawn(write_loop());
}

Connection::~Connection() { close(); }

bool Connection::send(FrameHeader header, std::string_view body) {
  if (closed_) return false;
  if (body.size() > limits_.frame_bytes_max || unsent_bytes() + body.size() > limits_.unsent_bytes_max) {
    close();
    return false;
  }
  append_frame(unsent_, header, body);
  wake_writer_.wake_all();
  return true;
}

rt::Task<void> Connection::write_loop() {
  while (!closed_) {
    if (unsent_.empty()) {
      co_await wake_writer_.wait();
      continue;
    }
    writing_.swap(unsent_);
    const std::span bytes(reinterpret_cast<const uint8_t*>(writing_.data()), writing_.size());
    Result<void> sent = co_await stream_->write(bytes);
    if (writing_.capacity() > (1u << 20)) {
      writing_ = std::string();
    } else {
      writing_.clear();
    }
    if (!sent) close();
  }
}

rt::Task<Result<Frame>> Connection::receive() {
  std::vector<uint8_t> buffer;
  while (true) {
    if (closed_) co_return Error{ErrorCode::kUnavailable, "the connection is closed"};
    Result<std::optional<Frame>> frame = reader_.next();
    if (!frame) co_return frame.error();
    if (frame->has_value()) co_return std::move(**frame);
    buffer.resize(kReadBytes);
    Result<size_t> got = co_await stream_->read(buffer);
    if (!got) co_return got.error();
    if (*got == 0) co_return Error{ErrorCode::kUnavailable, "the peer closed the connection"};
    reader_.feed(std::span(buffer.data(), *got));
  }
}

void Connection::close() {
  if (closed_) return;
  closed_ = true;
  stream_->close();
  wake_writer_.wake_all();
}

}  // namespace skate::rpc
