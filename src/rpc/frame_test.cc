#include "rpc/frame.h"

#include <gtest/gtest.h>

#include "rt/random.h"

namespace skate::rpc {
namespace {

std::span<const uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

TEST(Frame, SurvivesAnyPieces) {
  rt::Random random(1);
  std::string wire;
  std::vector<Frame> sent;
  for (int i = 0; i < 300; ++i) {
    Frame frame;
    frame.header.kind = static_cast<FrameKind>(1 + random.below(3));
    frame.header.code = static_cast<uint8_t>(random.below(5));
    frame.header.method = static_cast<uint16_t>(random());
    frame.header.id = random();
    frame.header.timeout_ms = static_cast<uint32_t>(random());
    frame.body.assign(random.below(i % 10 == 0 ? 100000 : 100), static_cast<char>(i));
    frame.header.length = static_cast<uint32_t>(frame.body.size());
    append_frame(wire, frame.header, frame.body);
    sent.push_back(std::move(frame));
  }
  FrameReader reader;
  size_t received = 0;
  for (size_t at = 0; at < wire.size();) {
    const size_t piece = std::min<size_t>(1 + random.below(5000), wire.size() - at);
    reader.feed(bytes_of(wire).subspan(at, piece));
    at += piece;
    while (true) {
      auto frame = reader.next();
      ASSERT_TRUE(frame.ok());
      if (!frame->has_value()) break;
      ASSERT_LT(received, sent.size());
      EXPECT_EQ((*frame)->header, sent[received].header);
      EXPECT_EQ((*frame)->body, sent[received].body);
      ++received;
    }
  }
  EXPECT_EQ(received, sent.size());
  EXPECT_EQ(reader.buffered_bytes(), 0u);
}

TEST(Frame, RefusesLengthsAndKinds) {
  std::string wire;
  FrameHeader header;
  header.kind = FrameKind::kRequest;
  append_frame(wire, header, std::string(1000, 'x'));
  FrameReader small(999);
  small.feed(bytes_of(wire));
  EXPECT_EQ(small.next().error().code, ErrorCode::kCorrupt);

  std::string unknown = wire;
  unknown[4] = 9;
  FrameReader reader;
  reader.feed(bytes_of(unknown));
  EXPECT_EQ(reader.next().error().code, ErrorCode::kCorrupt);
}

TEST(Frame, ReplyCarriesErrors) {
  Frame reply;
  reply.body = "text";
  EXPECT_EQ(*reply_result(reply), "text");
  reply.header.code = 1 + static_cast<uint8_t>(ErrorCode::kFull);
  EXPECT_EQ(reply_result(reply).error(), (Error{ErrorCode::kFull, "text"}));
  reply.header.code = 200;
  EXPECT_EQ(reply_result(reply).error().code, ErrorCode::kCorrupt);
}

}  // namespace
}  // namespace skate::rpc
