// A peer that writes anything at all into the shared ring, at any time: the reader hands out what lies
// within the ring, or closes the link; it neither hangs nor reads outside.
#include <algorithm>
#include <cstring>

#include "rpc/link.h"

namespace skate::rpc {
namespace {

Segment& segment() {
  static std::unique_ptr<Segment> made = std::move(*Segment::create(1));
  return *made;
}

struct Input {
  const uint8_t* data;
  size_t size;
  template <class T>
  T take() {
    T value{};
    size_t part = std::min(size, sizeof(T));
    std::memcpy(&value, data, part);
    data += part;
    size -= part;
    return value;
  }
};

}  // namespace
}  // namespace skate::rpc

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace skate::rpc;
  LinkArea& area = segment().link(0);
  std::memset(static_cast<void*>(&area), 0, sizeof area);
  Input input{data, size};
  // Begin near the ring's end as often as at its start.
  const uint64_t begin = input.take<uint16_t>() % (kRingBytes / 8) * 8;
  for (RingControl& control : area.control) {
    control.head.store(begin);
    control.tail.store(begin);
  }
  Link writer(segment(), 0, 0, 1);
  Link reader(segment(), 0, 1, 0);
  const uint8_t* ring = area.data[0];
  uint64_t sum = 0;
  bool open = true;
  while (open && input.size > 0) {
    switch (input.take<uint8_t>() % 6) {
      case 0: {  // honest traffic, to have something to break
        static constexpr char kBytes[kRingBytes] = {};
        writer.send(input.take<uint16_t>(), std::string_view(kBytes, input.take<uint16_t>()));
        break;
      }
      case 1:  // any word of the ring
        reinterpret_cast<uint64_t*>(area.data[0])[input.take<uint16_t>() % (kRingBytes / 8)] =
            input.take<uint64_t>();
        break;
      case 2: {  // a header that looks right, where the reader looks next
        uint64_t at = area.control[0].head.load() % kRingBytes / 8 * 8;
        uint64_t header =
            input.take<uint32_t>() | uint64_t{input.take<uint8_t>()} << 48 | uint64_t{0x5A} << 56;
        std::memcpy(area.data[0] + at, &header, sizeof header);
        break;
      }
      case 3: area.control[0].tail.store(area.control[0].tail.load() + input.take<uint16_t>()); break;
      case 4: {
        uint64_t word = input.take<uint64_t>();
        (word & 1 ? area.control[0].tail : area.control[0].head).store(word >> 1);
        break;
      }
      default: {
        auto count = reader.receive([&](uint16_t type, std::span<const uint8_t> body) {
          const bool within = body.data() >= ring && body.data() + body.size() <= ring + kRingBytes;
          SKATE_ASSERT(within || body.size() <= size_t{1} << 31,
                       "a body lies in the ring or was put together");
          for (uint8_t byte : body) sum += byte;
          sum += type;
        });
        open = count.ok();
      }
    }
  }
  volatile uint64_t sink = sum;  // the bytes were read
  (void)sink;
  return 0;
}
