#include "node/log_forwarder.h"

#include <utility>

namespace skate::node {

namespace {
constexpr rt::Duration kBatch = std::chrono::milliseconds(50);
constexpr size_t kLinesPerBatch = 500;
}  // namespace

LogForwarder::LogForwarder(rt::Loop& loop, uint32_t lines_per_s_max, Send send)
    : loop_(loop),
      lines_per_s_max_(lines_per_s_max),
      send_(std::move(send)),
      timer_(loop, [this] { flush(); }) {}

void LogForwarder::add(wire::LogLine line) {
  if (loop_.now() - second_ >= std::chrono::seconds(1)) {
    second_ = loop_.now();
    in_second_ = 0;
  }
  if (++in_second_ > lines_per_s_max_) {
    ++waiting_.dropped;
  } else {
    waiting_.lines.push_back(std::move(line));
  }
  if (waiting_.lines.size() >= kLinesPerBatch) {
    flush();
  } else if (!timer_.armed()) {
    timer_.start_after(kBatch);
  }
}

void LogForwarder::flush() {
  timer_.cancel();
  if (waiting_.lines.empty() && waiting_.dropped == 0) return;
  wire::LogLines batch = std::exchange(waiting_, {});
  if (send_(batch)) return;
  batch.dropped += batch.lines.size();
  batch.lines.clear();
  if (send_(batch)) return;
  waiting_.dropped = batch.dropped;
  timer_.start_after(kBatch);
}

}  // namespace skate::node
