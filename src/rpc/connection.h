// Connection: frames over an authenticated stream. Writes are gathered: whatever was queued while the last
// write was under way goes out in the next one. Used by Client and Server; lives on its loop.
#pragma once

#include <memory>
#include <string>

#include "rpc/frame.h"
#include "rt/stream.h"
#include "rt/sync.h"
#include "rt/task_group.h"

namespace skate::rpc {

struct ConnectionLimits {
  uint32_t frame_bytes_max = kFrameBytesMax;
  /// A peer that does not read is dropped when so much waits for it.
  size_t unsent_bytes_max = 512u << 20;
};

class Connection {
 public:
  Connection(rt::Loop& loop, std::unique_ptr<rt::Stream> stream, ConnectionLimits limits);
  ~Connection();

  /// False once closed. A peer too slow for what is sent to it is closed.
  bool send(FrameHeader header, std::string_view body);
  /// The next frame; kUnavailable at the end, kCorrupt for what is no frame.
  rt::Task<Result<Frame>> receive();
  void close();
  bool closed() const { return closed_; }
  std::string peer() const { return stream_->peer(); }
  size_t unsent_bytes() const { return unsent_.size() + writing_.size(); }

 private:
  rt::Task<void> write_loop();

  std::unique_ptr<rt::Stream> stream_;
  ConnectionLimits limits_;
  FrameReader reader_;
  std::string unsent_;
  std::string writing_;
  bool closed_ = false;
  rt::WaitList wake_writer_;
  rt::TaskGroup tasks_;
};

}  // namespace skate::rpc
