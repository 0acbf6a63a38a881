#include "store/client/copy.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace skate::store {
namespace {

TEST(CopyIn, CopiesEveryByteAtAnyAlignmentAndNoMore) {
  constexpr size_t kLarge = 5 << 20;
  std::vector<uint8_t> source(kLarge + 200);
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<uint8_t>(i * 31 + i / 255);
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{100}, kLarge, kLarge + 1, kLarge + 127}) {
    for (const size_t from : {size_t{0}, size_t{3}}) {
      for (const size_t to : {size_t{0}, size_t{1}, size_t{64}}) {
        std::vector<uint8_t> target(kLarge + 400, 0xEE);
        copy_in(target.data() + to, source.data() + from, bytes);
        ASSERT_EQ(std::memcmp(target.data() + to, source.data() + from, bytes), 0);
        for (size_t i = 0; i < to; ++i) ASSERT_EQ(target[i], 0xEE);
        for (size_t i = to + bytes; i < to + bytes + 64; ++i) ASSERT_EQ(target[i], 0xEE);
      }
    }
  }
}

}  // namespace
}  // namespace skate::store
