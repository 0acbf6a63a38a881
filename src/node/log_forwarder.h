// Lines of a job's workers on their way to its driver: batched, and no more a second than the limit. What is
// not sent, over the limit or because the driver does not read, is counted, and the count sent.
//
// Home: the daemon's loop.
#pragma once

#include <functional>

#include "rt/loop.h"
#include "wire/node_messages.h"

namespace skate::node {

class LogForwarder {
 public:
  /// False: there is no room for this now. Smaller batches may have some.
  using Send = std::function<bool(const wire::LogLines&)>;
  LogForwarder(rt::Loop& loop, uint32_t lines_per_s_max, Send send);

  void add(wire::LogLine line);
  /// Sends what waits.
  void flush();

 private:
  rt::Loop& loop_;
  const uint32_t lines_per_s_max_;
  Send send_;
  wire::LogLines waiting_;
  rt::TimePoint second_{};
  uint32_t in_second_ = 0;
  rt::Timer timer_;
};

}  // namespace skate::node
