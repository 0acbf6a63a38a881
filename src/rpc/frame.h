// Frames: what travels on a connection once both ends have proven the cluster key.
//
// A frame is a fixed header of 20 bytes, little-endian, then `length` bytes of body:
//   u32 length   u8 kind   u8 code   u16 method   u64 id   u32 timeout_ms
// Requests carry an id that the reply repeats, and how long the caller still waits (0: without limit).
// A reply's code is 0, or 1 + ErrorCode with the message as body. Notifications have neither id nor reply.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace skate::rpc {

enum class FrameKind : uint8_t { kRequest = 1, kReply = 2, kNotify = 3 };

struct FrameHeader {
  static constexpr size_t kBytes = 20;
  uint32_t length{};
  FrameKind kind{};
  uint8_t code{};
  uint16_t method{};
  uint64_t id{};
  uint32_t timeout_ms{};
  friend bool operator==(const FrameHeader&, const FrameHeader&) = default;
};

struct Frame {
  FrameHeader header;
  std::string body;
};

inline constexpr uint32_t kFrameBytesMax = 256u << 20;

void append_frame(std::string& out, FrameHeader header, std::string_view body);

/// Takes bytes as they come and hands out whole frames. Memory grows with what has arrived, never with what a
/// header promises. After an error the stream is of no more use.
class FrameReader {
 public:
  explicit FrameReader(uint32_t length_max = kFrameBytesMax) : length_max_(length_max) {}
  void feed(std::span<const uint8_t> bytes) {
    buffer_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  /// The next whole frame, nothing when more bytes are needed, kCorrupt when they are no frames.
  Result<std::optional<Frame>> next();
  size_t buffered_bytes() const { return buffer_.size() - begin_; }

 private:
  uint32_t length_max_;
  std::string buffer_;
  size_t begin_ = 0;
};

/// The error that a reply carries, or its body.
Result<std::string> reply_result(Frame reply);

}  // namespace skate::rpc
