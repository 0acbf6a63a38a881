// Whatever arrives, in whatever pieces: whole frames that encode to the same bytes, or one error.
#include <algorithm>

#include "rpc/frame.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace skate::rpc;
  if (size == 0) return 0;
  const size_t piece = 1 + data[0] % 64;
  FrameReader reader(1 << 16);
  std::string again;
  bool failed = false;
  for (size_t at = 1; at < size && !failed; at += piece) {
    reader.feed(std::span(data + at, std::min(piece, size - at)));
    while (true) {
      auto frame = reader.next();
      failed = !frame.ok();
      if (failed || !frame->has_value()) break;
      append_frame(again, (*frame)->header, (*frame)->body);
    }
  }
  SKATE_ASSERT(again.size() < size, "frames are not larger than what came");
  SKATE_ASSERT(std::equal(again.begin(), again.end(), reinterpret_cast<const char*>(data) + 1),
               "frames encode to what came");
  return 0;
}
