#include "wire/value.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

namespace skate::wire {
namespace {

std::vector<uint8_t> random_bytes(std::mt19937_64& random, size_t size) {
  std::vector<uint8_t> bytes(size);
  for (auto& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

/// A value whose parts it owns.
struct Sample {
  ValueFormat format{};
  std::vector<uint8_t> inband;
  std::vector<std::vector<uint8_t>> buffers;
  std::vector<std::span<const uint8_t>> spans;
  std::vector<ValueRef> refs;
  std::vector<Address> owners;

  static Sample random(std::mt19937_64& random) {
    Sample sample;
    sample.format = static_cast<ValueFormat>(random() % (kValueFormatMax + 1));
    sample.inband = random_bytes(random, random() % 200);
    for (size_t i = random() % 5; i > 0; --i) sample.buffers.push_back(random_bytes(random, random() % 300));
    for (size_t i = random() % 3; i > 0; --i) sample.owners.push_back({WorkerId::random(), NodeId::random()});
    if (!sample.owners.empty()) {
      for (size_t i = random() % 6; i > 0; --i) {
        sample.refs.push_back(
            {ObjectId(Id<ObjectTag, 28>::random()), static_cast<uint32_t>(random() % sample.owners.size())});
      }
    }
    for (auto& buffer : sample.buffers) sample.spans.emplace_back(buffer);
    return sample;
  }

  ValueParts parts() const { return {format, inband, spans, refs, owners}; }
};

bool same(std::span<const uint8_t> a, std::span<const uint8_t> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

TEST(Value, SmallestIsItsHeader) {
  ValueParts parts;
  auto bytes = parts.to_bytes();
  EXPECT_EQ(bytes.size(), kValueHeaderBytes);
  auto view = parse_value(bytes);
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(view->format(), ValueFormat::kRaw);
  EXPECT_TRUE(view->inband().empty());
  EXPECT_TRUE(view->first_buffer().empty());
}

TEST(Value, RoundTripsEveryPart) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 500; ++round) {
    Sample sample = Sample::random(random);
    auto bytes = sample.parts().to_bytes();
    auto parsed = parse_value(bytes);
    ASSERT_TRUE(parsed.ok()) << parsed.error().message;
    const ValueView& view = *parsed;
    EXPECT_EQ(view.format(), sample.format);
    EXPECT_TRUE(same(view.inband(), sample.inband));
    ASSERT_EQ(view.owner_count(), sample.owners.size());
    for (uint32_t i = 0; i < view.owner_count(); ++i) EXPECT_EQ(view.owner(i), sample.owners[i]);
    ASSERT_EQ(view.ref_count(), sample.refs.size());
    for (uint32_t i = 0; i < view.ref_count(); ++i) EXPECT_EQ(view.ref(i), sample.refs[i]);
    auto buffers = view.buffers();
    ASSERT_EQ(buffers.size(), sample.buffers.size());
    for (size_t i = 0; i < buffers.size(); ++i) {
      EXPECT_TRUE(same(buffers[i], sample.buffers[i]));
      EXPECT_EQ(static_cast<size_t>(buffers[i].data() - bytes.data()) % kValueAlign, 0u);
    }
    EXPECT_TRUE(same(view.first_buffer(), buffers.empty() ? std::span<const uint8_t>() : buffers[0]));
  }
}

TEST(Value, IsRelocatable) {
  std::mt19937_64 random(2);
  Sample sample = Sample::random(random);
  auto bytes = sample.parts().to_bytes();
  std::vector<uint8_t> moved(bytes.size() + 1);
  std::memcpy(moved.data() + 1, bytes.data(), bytes.size());
  auto view = parse_value(std::span(moved).subspan(1));
  ASSERT_TRUE(view.ok());
  EXPECT_TRUE(same(view->inband(), sample.inband));
}

size_t copied_bytes = 0;
void counting_copy(void* out, const void* in, size_t bytes) {
  copied_bytes += bytes;
  std::memcpy(out, in, bytes);
}

TEST(Value, LargePartsGoThroughTheCopyFunction) {
  std::vector<uint8_t> large(kLargePartBytes, 7);
  std::vector<uint8_t> small(kLargePartBytes - 1, 8);
  std::vector<std::span<const uint8_t>> spans{large, small};
  ValueParts parts{ValueFormat::kPickle5, large, spans, {}, {}};
  std::vector<uint8_t> bytes(parts.flat_size());
  copied_bytes = 0;
  parts.write_to(bytes.data(), counting_copy);
  EXPECT_EQ(copied_bytes, 2 * kLargePartBytes);
  EXPECT_EQ(bytes, parts.to_bytes());
}

TEST(Value, EveryTruncationAndExtensionIsRefused) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 30; ++round) {
    auto bytes = Sample::random(random).parts().to_bytes();
    for (size_t size = 0; size < bytes.size(); ++size) {
      auto view = parse_value(std::span(bytes).first(size));
      ASSERT_FALSE(view.ok());
      EXPECT_EQ(view.error().code, ErrorCode::kCorrupt);
    }
    bytes.push_back(0);
    EXPECT_FALSE(parse_value(bytes).ok());
  }
}

void set_u32(std::vector<uint8_t>& bytes, size_t at, uint32_t value) {
  std::memcpy(bytes.data() + at, &value, 4);
}
void set_u64(std::vector<uint8_t>& bytes, size_t at, uint64_t value) {
  std::memcpy(bytes.data() + at, &value, 8);
}

TEST(Value, SizesThatOverflowAreRefused) {
  std::vector<uint8_t> buffer(100);
  std::vector<std::span<const uint8_t>> spans{buffer, buffer};
  ValueParts parts{ValueFormat::kPickle5, buffer, spans, {}, {}};
  const auto good = parts.to_bytes();
  ASSERT_TRUE(parse_value(good).ok());
  const uint64_t bytes_max = good.size();
  for (uint64_t size : {UINT64_MAX, UINT64_MAX - 63, UINT64_MAX - 200, uint64_t{1} << 63, bytes_max}) {
    auto bytes = good;
    set_u64(bytes, 16, size);  // in-band
    EXPECT_FALSE(parse_value(bytes).ok()) << size;
    for (size_t at : {kValueHeaderBytes, kValueHeaderBytes + 8}) {
      bytes = good;
      set_u64(bytes, at, size);
      EXPECT_FALSE(parse_value(bytes).ok()) << size;
    }
  }
  for (size_t at : {4, 8, 12}) {  // counts
    auto bytes = good;
    set_u32(bytes, at, UINT32_MAX);
    EXPECT_FALSE(parse_value(bytes).ok());
  }
}

TEST(Value, HeaderFieldsAreChecked) {
  const auto good = ValueParts{}.to_bytes();
  for (size_t at : {0, 2, 3}) {
    auto bytes = good;
    bytes[at] ^= 0x40;
    EXPECT_FALSE(parse_value(bytes).ok()) << at;
  }
  auto bytes = good;
  bytes[1] = kValueFormatMax + 1;
  EXPECT_FALSE(parse_value(bytes).ok());
}

TEST(Value, RefsNeedAnOwner) {
  std::vector<ValueRef> refs{{ObjectId(), 1}};
  std::vector<Address> owners{{}};
  ValueParts parts{ValueFormat::kNative, {}, {}, refs, owners};
  EXPECT_FALSE(parse_value(parts.to_bytes()).ok());
  refs[0].owner = 0;
  EXPECT_TRUE(parse_value(parts.to_bytes()).ok());
}

TEST(Value, StaysInsideWhenTheBytesChangeAfterParsing) {
  std::mt19937_64 random(4);
  for (int round = 0; round < 300; ++round) {
    auto bytes = Sample::random(random).parts().to_bytes();
    auto view = parse_value(bytes);
    ASSERT_TRUE(view.ok());
    for (auto& byte : bytes) byte = static_cast<uint8_t>(random());
    for (auto buffer : view->buffers()) {
      EXPECT_GE(buffer.data(), bytes.data());
      EXPECT_LE(buffer.data() + buffer.size(), bytes.data() + bytes.size());
    }
    for (uint32_t i = 0; i < view->ref_count(); ++i) EXPECT_LT(view->ref(i).owner, view->owner_count());
  }
}

TEST(SystemError, RoundTrips) {
  SystemError error{"worker_died", {{"pid", "12"}, {"message", "killed by SIGKILL"}, {"empty", ""}}};
  auto bytes = encode_system_error(error.kind, error.fields);
  auto view = parse_value(bytes);
  ASSERT_TRUE(view.ok());
  EXPECT_TRUE(view->is_error());
  EXPECT_EQ(*parse_system_error(view->inband()), error);
  for (size_t size = 0; size < view->inband().size(); ++size) {
    EXPECT_FALSE(parse_system_error(view->inband().first(size)).ok());
  }
}

}  // namespace
}  // namespace skate::wire
